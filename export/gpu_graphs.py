"""The encoder for GPUs: an FP16 graph, its INT8 form, and the engines that TensorRT builds of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import VerificationError
from export.fp16 import export_fp16_encoder, verify_fp16
from export.graph_file import load_graph
from export.int8 import Int8Settings, decide
from export.report import FP16_BUDGET, INT8_BUDGET, VerificationReport
from export.settings import Precision
from export.task import Task
from export.tensorrt.engine import EngineFile, make_engine, refuse_slower, verify_engine
from export.tensorrt.module import require_gpu_build
from export.tensorrt.profiles import make_profiles
from export.tensorrt.quantized import emit_symmetric
from export.tokens import calibration_batches
from export.verify import verify_encoder
from training.model import InstructionModel

__all__ = ["GpuGraph", "GpuGraphs"]

_RECIPES = (Int8Settings(), Int8Settings(float_down_projection=True))
"""In the order they are tried, fastest first: the second keeps the narrowing products in FP16."""


@dataclass(frozen=True)
class GpuGraph:
    """A verified graph.

    Attributes:
        path: The ONNX file.
        reports: Of every graph on the way and of the engine, in the order they were made.
        engine: Built of the graph on this machine; None for `fp16`.
    """

    path: Path
    reports: tuple[VerificationReport, ...]
    engine: EngineFile | None


@dataclass(frozen=True)
class GpuGraphs:
    """What the graphs of one run are made of and held against.

    Attributes:
        model: The torch model, in FP32.
        buckets: Lengths, in tokens, that the server pads to.
        max_batch_size: Largest batch of an execution.
        calibration: Texts that INT8 ranges are measured on.
        texts: Real instructions to verify with.
        item_vectors: [N, H], normalised.
        folder: Where the graphs are written.
        task: Of the very instructions in `texts`; without it the task's metrics are not compared.
    """

    model: InstructionModel
    buckets: Sequence[int]
    max_batch_size: int
    calibration: Sequence[str]
    texts: Sequence[str]
    item_vectors: npt.NDArray[np.float32]
    folder: Path
    task: Task | None = None

    def build(self, precision: Precision, fp32: Path, say: Callable[[str], None] = lambda _: None) -> GpuGraph:
        """Make the graph of a precision, and its engine.

        Args:
            precision: `fp16`, `trt-fp16` or `trt-int8`.
            fp32: The FP32 graph of the model.
            say: Told what is being done.

        Raises:
            VerificationError: A graph or engine is further from torch than its budget allows.
            ExportError: The encoder cannot be exported, or no engine can be built here.
            GpuError: The GPU fails on the way.
        """
        trt = None if precision == "fp16" else require_gpu_build()
        say("encoder to ONNX FP16")
        fp16 = self.folder / "encoder-fp16.onnx"
        export_fp16_encoder(self.model, fp16)
        say("verifying FP16 against torch")
        reports = [
            verify_fp16(
                fp16,
                self.model,
                self.texts,
                self.buckets,
                FP16_BUDGET,
                item_vectors=self.item_vectors,
                task=self.task,
            )
        ]
        if trt is None:
            return GpuGraph(fp16, tuple(reports), None)
        cache = self.folder.parent / ".timing-cache"  # outlives this export, beside the releases
        say("building the FP16 engine")
        engine, runner = make_engine(trt, fp16, "fp16", self.buckets, self.max_batch_size, cache)
        path, budget = fp16, FP16_BUDGET
        if precision == "trt-int8":
            path, budget = self.folder / "encoder-int8-symmetric.onnx", INT8_BUDGET
            reports += self.quantize(fp32, fp16, path, say)
            say("building the INT8 engine")
            half = runner
            engine, runner = make_engine(trt, path, "int8", self.buckets, self.max_batch_size, cache)
            refuse_slower(runner, half, self.buckets, self.max_batch_size)
        say("verifying the engine against torch")
        reports.append(
            verify_engine(
                runner,
                engine.path.name,
                self.model,
                self.texts,
                make_profiles(self.buckets, self.max_batch_size),
                budget,
                item_vectors=self.item_vectors,
                task=self.task,
            )
        )
        return GpuGraph(path, tuple(reports), engine)

    def quantize(
        self, fp32: Path, fp16: Path, path: Path, say: Callable[[str], None] = lambda _: None
    ) -> tuple[VerificationReport, ...]:
        """Write the S8 form of the FP16 graph, calibrated on the FP32 one: the fastest recipe within the budget.

        Args:
            fp32: The FP32 graph.
            fp16: The FP16 graph of the same model.
            path: The file to make.
            say: Told what is being done.

        Returns:
            The report of every recipe that was tried; the last one passed.

        Raises:
            VerificationError: All are further from torch than INT8 may be.
            ExportError: It cannot be quantised.
        """
        exact, half = load_graph(fp32), load_graph(fp16)
        batches = calibration_batches(self.model, self.calibration)
        reports: list[VerificationReport] = []
        for settings in _RECIPES:
            say("calibrating, quantising to symmetric INT8 and verifying against torch")
            emit_symmetric(exact, half, decide(exact, batches, settings), path)
            try:
                return (*reports, self._verify_int8(path))
            except VerificationError as error:
                failed = error
                reports.append(error.report)
        raise failed

    def _verify_int8(self, path: Path) -> VerificationReport:
        return verify_encoder(
            path, self.model, self.texts, self.buckets, INT8_BUDGET, item_vectors=self.item_vectors, task=self.task
        )
