"""Graphs and engines of a run from end to end; the graph runs in the place of the engine built of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from engine_fakes import BUILT, CudaRuntime, Engine, Memory, put_cuda, put_nvidia_smi
from tiny_encoders import words_model

from export.gpu_graphs import GpuGraphs
from export.graph_file import open_session
from export.onnx_graph import export_encoder
from export.tensorrt import engine as engine_module
from export.tensorrt.network import BuiltEngine
from export.tensorrt.profiles import make_profiles

TEXTS = [" ".join(f"w{(start * step) % 97 + 3}" for step in range(1, 2 + start % 9)) for start in range(1, 60)]
BUCKETS, LARGEST = (8, 16), 12


class HostEngine(Engine):
    """An engine that runs the graph it was built of on the host."""

    def __init__(self, graph: Path, memory: Memory) -> None:
        super().__init__(memory)
        self.session = open_session(graph)
        self.profiles = tuple((one.smallest, one.largest, one.largest) for one in make_profiles(BUCKETS, LARGEST))
        self.num_optimization_profiles = len(self.profiles)
        self.types = dict.fromkeys(("input_ids", "attention_mask"), tensorrt_rtx.int64)
        self.types["instruction_vector"] = tensorrt_rtx.float32
        self.shapes: set[tuple[int, int]] = set()

    def answer(self, ids: Any, mask: Any) -> Any:
        self.shapes.add(ids.shape)
        return self.session.run(["instruction_vector"], {"input_ids": ids, "attention_mask": mask})[0]

    def get_tensor_shape(self, name: str) -> Any:
        return tuple(
            size if isinstance(size, int) else -1
            for one in (*self.session.get_inputs(), *self.session.get_outputs())
            if one.name == name
            for size in one.shape
        )

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name]

    def create_execution_context(self, strategy: Any = None) -> Any:
        return super().create_execution_context("shared")

    def create_engine_inspector(self) -> Any:
        layers = [{"Name": "product", "Inputs": [{"Format/Datatype": kind}]} for kind in ("Half", "Int8")]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))


class TensorRT:
    """TensorRT whose engines run on the host; its names are those of TensorRT for RTX."""

    __version__ = BUILT.tensorrt

    def __init__(self, memory: Memory) -> None:
        self.memory, self.graph, self.engines = memory, Path(), []

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def build(self, trt: Any, graph: Path, *_: Any, **__: Any) -> BuiltEngine:
        """In place of the builder, which takes minutes for six profiles on a busy machine; it has tests of its own."""
        self.graph = graph
        return BuiltEngine(plan=b"engine", timing_cache=b"", products=())

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's own name
        def deserialize(plan: bytes) -> HostEngine:
            assert plan == b"engine"
            self.engines.append(HostEngine(self.graph, self.memory))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRT:
    put_nvidia_smi(monkeypatch, tmp_path, "NVIDIA L4, 8.9, 550.54")
    put_cuda(monkeypatch, CudaRuntime())
    memory = Memory()
    monkeypatch.setattr(engine_module, "Cuda", lambda: memory)
    module = TensorRT(memory)
    monkeypatch.setattr(engine_module, "build_engine", module.build)
    monkeypatch.setattr("export.gpu_graphs.require_gpu_build", lambda: module)
    return module


def graphs(folder: Path) -> tuple[GpuGraphs, Path]:
    model, folder = words_model(), folder / "release"
    folder.mkdir()
    export_encoder(model, folder / "fp32.onnx")
    vectors = np.random.default_rng(0).normal(size=(40, model.head.in_features)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = GpuGraphs(model, BUCKETS, LARGEST, TEXTS, TEXTS, vectors, folder)
    return made, folder / "fp32.onnx"


def test_an_engine_is_built_signed_and_held_against_torch_on_the_ranking_too(trt, tmp_path):
    builder, fp32 = graphs(tmp_path)
    built = builder.build("trt-fp16", fp32)
    assert built.engine is not None
    assert built.engine.fingerprint == BUILT
    assert built.engine.path.read_bytes() == b"engine"
    report = built.reports[-1]
    assert report.graph == built.engine.path.name
    assert "overlap of the best 10 items" in {check.name for check in report.checks}
    [engine] = trt.engines
    assert {(rows, length) for rows in (1, 2, 4, 8, 12) for length in BUCKETS} <= engine.shapes
