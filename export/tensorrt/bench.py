"""Measures encoders on the GPU of this machine: engines, and torch in half precision, over batch and length.

Needs the repository's code, torch and transformers, TensorRT and `cuda-python`, and nothing that was produced here but
the graphs it is given.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import ExportError
from export.tensorrt.engine import Runner, load_runner, median_seconds
from export.tensorrt.network import EnginePrecision, build_engine
from export.tensorrt.profiles import Profile
from serving.engines.fingerprint import Fingerprint, query_gpu

__all__ = ["BATCHES", "LENGTHS", "Measurement", "engine_runner", "machine", "markdown", "measure", "torch_runner"]

LENGTHS = (16, 32, 64, 128)
BATCHES = (1, 8, 32)
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class Measurement:
    """Median times at one shape, from an array on the host to an array on the host.

    Attributes:
        batch: Rows.
        length: Tokens a row.
        milliseconds: By encoder.
        clocks: What the GPU ran at just after.
    """

    batch: int
    length: int
    milliseconds: dict[str, float]
    clocks: dict[str, str]


def measure(
    runners: dict[str, Runner], lengths: Sequence[int] = LENGTHS, batches: Sequence[int] = BATCHES, rounds: int = 200
) -> list[Measurement]:
    """Times all encoders in turns at every shape.

    Raises:
        GpuError: There is no GPU to ask for its clocks.
    """
    found = []
    for length in lengths:
        for batch in batches:
            ids = np.random.default_rng(length * batch).integers(1000, 2000, size=(batch, length), dtype=np.int64)
            seconds = median_seconds(runners, ids, rounds=rounds)
            clocks = dict(zip(_CLOCKS, query_gpu(_CLOCKS), strict=True))
            found.append(Measurement(batch, length, {name: 1e3 * one for name, one in seconds.items()}, clocks))
    return found


def engine_runner(trt: Any, graph: Path, precision: EnginePrecision) -> Runner:
    """Builds an engine with a profile for each shape that is measured, and a CUDA graph for each.

    Raises:
        ExportError: It does not build, or is not of that precision.
        GpuError: There is no GPU.
    """
    shapes = [(batch, length) for length in LENGTHS for batch in BATCHES]
    profiles = [Profile(shape, shape) for shape in shapes]
    return load_runner(trt, build_engine(trt, graph, precision, profiles), precision, profiles, shapes)


def torch_runner(folder: Path) -> Runner:
    """Torch's own FP16, eager, with mean pooling in FP32: what an engine is compared with.

    Args:
        folder: A Hugging Face encoder, as the folder `encoder` of a run.

    Raises:
        ExportError: torch sees no GPU.
    """
    import torch  # noqa: PLC0415 - engines alone can be measured without it
    from transformers import AutoModel  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise ExportError("torch sees no GPU; install a build of torch with CUDA, or leave --encoder out")
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float16).cuda().eval()

    class Torch:
        """The same steps as an engine's: copy in, run, pool, normalise, copy out."""

        @torch.inference_mode()
        def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            tokens, visible = (torch.from_numpy(one).cuda(non_blocking=True) for one in (ids, mask))
            states = encoder(input_ids=tokens, attention_mask=visible).last_hidden_state.float()
            pooled = (states * visible[:, :, None]).sum(dim=1) / visible.sum(dim=1, keepdim=True)
            vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(pooled).cpu().numpy()
            return vectors

    return Torch()


def machine(tensorrt: str) -> dict[str, str]:
    """What the times are of: GPU, driver, versions, its clocks at rest.

    Raises:
        GpuError: There is no GPU.
    """
    clocks = dict(zip(_CLOCKS, query_gpu(_CLOCKS), strict=True))
    return {**asdict(Fingerprint.here(tensorrt)), "python": platform.python_version(), **clocks}


def markdown(where: dict[str, str], found: Sequence[Measurement]) -> str:
    """A table of milliseconds; beside each encoder but the first, how many times faster than the first it is."""
    names = list(found[0].milliseconds)
    header = ["length", "batch", names[0], *(f"{name} (× {names[0]})" for name in names[1:]), "SM clock"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in where.items()),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for one in found:
        first = one.milliseconds[names[0]]
        cells = [f"{one.length}", f"{one.batch}", f"{first:.3f}"]
        cells += [f"{one.milliseconds[name]:.3f} ({first / one.milliseconds[name]:.2f})" for name in names[1:]]
        lines.append("| " + " | ".join([*cells, one.clocks.get("clocks.sm", "")]) + " |")
    return "\n".join(lines) + "\n"


def write(path: Path, where: dict[str, str], found: Sequence[Measurement]) -> None:
    """Keep the figures as JSON."""
    content = {"machine": where, "measurements": [asdict(one) for one in found]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
