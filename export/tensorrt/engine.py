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
import torch

from export.errors import ExportError, VerificationError
from export.report import Check, VerificationBudget, VerificationReport
from export.tensorrt.inspection import check_engine
from export.tensorrt.network import BuiltEngine, EnginePrecision, build_engine
from export.tensorrt.profiles import Profile, captured_batches, make_profiles
from export.tokens import pad, tokenize
from serving.engines.cuda import Cuda
from serving.engines.fingerprint import Fingerprint, GpuError
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
        GpuError: There is no GPU.
    """
    fingerprint = Fingerprint.here(trt.__version__)
    profiles = make_profiles(buckets, max_batch_size)
    measured = cache / f"{_slug(fingerprint)}.timing"
    built = build_engine(
        trt, graph, precision, profiles, timing_cache=measured.read_bytes() if measured.is_file() else b""
    )
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
        ExportError: There is no GPU, TensorRT refuses its own engine, or it is another than was asked for.
    """
    try:
        device = Cuda()
    except GpuError as error:
        raise ExportError(str(error)) from None
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(built.plan)
    if engine is None:
        raise ExportError("TensorRT does not load the engine that it has just built.")
    check_engine(trt, engine, precision, profiles, built.products)
    return EngineRunner(trt, engine, device, shapes)


def verify_engine(
    runner: Runner,
    name: str,
    model: InstructionModel,
    texts: Sequence[str],
    buckets: Sequence[int],
    max_batch_size: int,
    budget: VerificationBudget,
) -> VerificationReport:
    """Holds an engine against torch, alone and in full batches, at every bucket that the texts reach.

    Args:
        runner: The engine.
        name: Its name in the report.
        model: The torch model, in FP32.
        texts: Real instructions.
        buckets: Lengths that the server pads to.
        max_batch_size: Largest batch.
        budget: How far it may be from torch. Batches of other sizes run other kernels, so its answers may differ by
            rounding from batch to batch; `max_absolute` bounds that.

    Raises:
        VerificationError: A check failed.
    """
    rows = sorted(tokenize(model, texts), key=len)
    bucket_of = [next((bucket for bucket in sorted(buckets) if len(row) <= bucket), max(buckets)) for row in rows]
    expected, found, shapes = [], [], []
    for start in range(0, len(rows), max_batch_size):
        batch = pad(rows[start : start + max_batch_size], max(bucket_of[start : start + max_batch_size]))
        expected.append(_torch(model, *batch))
        found.append(runner.run(*batch))
        shapes.append((batch[0].shape[0], batch[0].shape[1]))
    exact, given = np.concatenate(expected).astype(np.float64), np.concatenate(found).astype(np.float64)
    alone = np.concatenate([runner.run(*pad([row], bucket)) for row, bucket in zip(rows, bucket_of, strict=True)])
    invalid = int((~np.isfinite(given)).sum() + (~np.isfinite(alone)).sum())
    checks = [Check.at_most("values that are not finite", invalid, 0)]
    if not invalid:
        cosine = (exact * given).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(given, axis=1)
        checks += [
            Check.at_least("mean cosine", float(cosine.mean()), budget.mean_cosine),
            Check.at_least("minimum cosine", float(cosine.min()), budget.min_cosine),
            Check.at_most("greatest difference", float(np.abs(exact - given).max()), budget.max_absolute),
            Check.at_most(
                "difference between alone and in a batch", float(np.abs(alone - given).max()), budget.max_absolute
            ),
        ]
    report = VerificationReport(graph=name, texts=len(rows), shapes=tuple(dict.fromkeys(shapes)), checks=tuple(checks))
    if not report.passed:
        raise VerificationError(report)
    return report


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
        for _ in range(3):  # the first sets up, the second records the CUDA graph
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


@torch.inference_mode()
def _torch(model: InstructionModel, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = model(torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()
    return vectors
