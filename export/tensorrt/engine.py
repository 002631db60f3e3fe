"""The engine of a release: built on this machine's GPU, looked into, held against torch, and signed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.agreement import encode, not_finite
from export.errors import ExportError, VerificationError
from export.fp16 import largest_batches
from export.report import VerificationBudget, VerificationReport
from export.task import Task
from export.tensorrt.inspection import check_engine
from export.tensorrt.network import BuiltEngine, EnginePrecision, build_engine
from export.tensorrt.profiles import INPUTS, Profile, captured_batches, make_profiles
from export.tokens import pad, tokenize
from export.verify import compare, shaped_batches
from serving.engines.cuda import Cuda
from serving.engines.fingerprint import Fingerprint
from serving.engines.loading import deserialize
from serving.engines.runner import EngineRunner
from serving.files import write_atomically
from training.model import InstructionModel

__all__ = ["EngineFile", "Runner", "load_runner", "make_engine", "median_seconds", "refuse_slower", "verify_engine"]


class Runner(Protocol):
    """Whatever maps token ids and masks [batch, length] to vectors [batch, H]."""

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True)
class EngineFile:
    """An engine of a release.

    Attributes:
        path: The serialised engine.
        fingerprint: Of the machine that built it.
    """

    path: Path
    fingerprint: Fingerprint


def make_engine(
    trt: Any,
    graph: Path,
    precision: EnginePrecision,
    buckets: Sequence[int],
    max_batch_size: int,
    cache: Path,
) -> tuple[EngineFile, EngineRunner]:
    """Builds an engine beside its graph, and checks that it is what was asked for.

    Args:
        trt: The module `tensorrt`.
        graph: The ONNX file.
        precision: Of the matrix products.
        buckets: Lengths, in tokens, that the server pads to.
        max_batch_size: Largest batch.
        cache: Where the timing cache of this GPU and version is kept between builds.

    Returns:
        The engine's file and the engine ready to run.

    Raises:
        ExportError: The graph does not build, or the engine is another than was asked for.
        GpuError: There is no GPU, its driver is too old, or its memory is short.
    """
    fingerprint = Fingerprint.here(trt.__version__)
    profiles = make_profiles(buckets, max_batch_size)
    measured = cache / f"{_slug(fingerprint)}.timing"
    built = build_engine(
        trt, graph, precision, profiles, timing_cache=measured.read_bytes() if measured.is_file() else b""
    )
    if built.timing_cache:
        measured.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(measured, built.timing_cache)
    shapes = [(batch, length) for length in buckets for batch in captured_batches(max_batch_size)]
    runner = load_runner(trt, built, precision, profiles, shapes)
    path = graph.with_suffix(".plan")
    path.write_bytes(built.plan)
    return EngineFile(path, fingerprint), runner


def load_runner(
    trt: Any,
    built: BuiltEngine,
    precision: EnginePrecision,
    profiles: Sequence[Profile],
    shapes: Sequence[tuple[int, int]],
) -> EngineRunner:
    """Deserialises an engine on the GPU and asserts its types, profiles and precision.

    Raises:
        ExportError: It is another than was asked for.
        GpuError: There is no GPU, its memory is short, or TensorRT refuses its own engine.
    """
    device = Cuda()
    engine = deserialize(trt, built.plan)
    check_engine(trt, engine, precision, profiles, built.products)
    return EngineRunner(trt, engine, device, shapes)


class _Served:
    """An engine behind the interface of an open graph: padded to a bucket, in batches that it takes."""

    def __init__(self, runner: Runner, buckets: Sequence[int], max_batch_size: int) -> None:
        self._runner, self._buckets, self._step = runner, sorted(buckets), max_batch_size

    def run(self, names: Sequence[str], feed: dict[str, npt.NDArray[Any]], /) -> list[npt.NDArray[Any]]:
        rows, length = feed[INPUTS[0]].shape
        missing = _bucket(length, self._buckets) - length
        ids, mask = (np.pad(feed[name], ((0, 0), (0, missing))) for name in INPUTS)
        parts = [slice(start, start + self._step) for start in range(0, rows, self._step)]
        return [np.concatenate([self._runner.run(ids[part], mask[part]) for part in parts])]


def verify_engine(
    runner: Runner,
    name: str,
    model: InstructionModel,
    texts: Sequence[str],
    profiles: Sequence[Profile],
    budget: VerificationBudget,
    *,
    item_vectors: npt.NDArray[np.float32] | None = None,
    task: Task | None = None,
) -> VerificationReport:
    """Holds an engine against torch as a graph is, and at every shape that is recorded for it; so in every profile.

    Args:
        runner: The engine.
        name: Its name in the report.
        model: The torch model, in FP32.
        texts: Real instructions. Each runs alone too.
        profiles: The engine's; the server pads to their largest lengths.
        budget: How far it may be from torch. Batches of other sizes run other kernels, so its answers may differ by
            rounding from batch to batch; `max_absolute` bounds that, in place of `invariance`.
        item_vectors: As in `verify_encoder`.
        task: As in `verify_encoder`.

    Raises:
        VerificationError: A check failed.
        GpuError: The GPU fails.
    """
    buckets = sorted({profile.largest[1] for profile in profiles})
    max_batch_size = max(profile.largest[0] for profile in profiles)
    served = _Served(runner, buckets, max_batch_size)
    rows = [row[: max(buckets)] for row in tokenize(model, texts)]
    sizes = sorted({*captured_batches(max_batch_size), max_batch_size - 1} - {0})  # one that has to be filled up
    batches = shaped_batches(rows, buckets, sizes) + [pad([row], _bucket(len(row), buckets)) for row in rows]
    budget = budget.model_copy(update={"invariance": budget.max_absolute})
    found = compare(served, 1, model, rows, batches, budget, item_vectors, task)
    extreme = not_finite(*(encode(served, batch) for batch in largest_batches(model, texts, max(buckets))))
    report = VerificationReport(
        graph=name,
        texts=len(rows),
        shapes=tuple(dict.fromkeys((ids.shape[0], ids.shape[1]) for ids, _ in batches)),
        checks=(*found.checks, extreme.model_copy(update={"name": f"{extreme.name}, largest inputs"})),
        task=tuple(found.task),
    )
    if not report.passed:
        raise VerificationError(report)
    return report


def _bucket(length: int, buckets: Sequence[int]) -> int:
    """What the server pads a text of that length to."""
    return next(bucket for bucket in sorted(buckets) if length <= bucket)


def refuse_slower(
    int8: Runner,
    fp16: Runner,
    buckets: Sequence[int],
    batch: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Refuses an INT8 engine that is slower than FP16 over the buckets at a full batch: it would buy nothing.

    Raises:
        ExportError: It is.
    """
    seconds = {"int8": 0.0, "fp16": 0.0}
    for length in buckets:
        ids = np.ones((batch, length), dtype=np.int64)
        for name, one in median_seconds({"int8": int8, "fp16": fp16}, ids, clock=clock).items():
            seconds[name] += one
    if seconds["int8"] > seconds["fp16"]:
        raise ExportError(
            f"On this GPU the INT8 engine takes {1e3 * seconds['int8']:.3f} ms over the length buckets at batch "
            f"{batch}, the FP16 engine {1e3 * seconds['fp16']:.3f} ms: export with PRECISION=trt-fp16."
        )


def median_seconds(
    runners: dict[str, Runner],
    ids: npt.NDArray[np.int64],
    *,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time of a run of each, from host to host, in turns so that a changing clock meets all alike."""
    mask = np.ones_like(ids)
    for runner in runners.values():
        for _ in range(3):  # the first runs take longer
            runner.run(ids, mask)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            start = clock()
            runner.run(ids, mask)
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _slug(fingerprint: Fingerprint) -> str:
    words = f"{fingerprint.gpu}-{fingerprint.compute_capability}-{fingerprint.driver}-{fingerprint.tensorrt}"
    return "".join(character if character.isalnum() or character in ".-" else "_" for character in words)
