"""Engines where they are served: fingerprints are compared, batches run, and the ONNX graph stands in."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from engine_fakes import WIDTH, Engine, Memory, expected
from engine_releases import BUILT, engine_release
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from serving_helpers import (
    ROOT,
    Request,
    TritonModelException,
    build_release,
    install_triton,
    load_model_file,
)

from serving.engine_variants import engine_warning
from serving.engines.cuda import Cuda
from serving.engines.fingerprint import FINGERPRINT_NAME, Fingerprint, GpuError, gpu_in_use
from serving.engines.runner import EngineRunner, ShapeError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts an `nvidia-smi` on the path that answers as told; told nothing, there is none."""

    def install(answer: str | None, status: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        program.unlink(missing_ok=True)
        if answer is not None:
            program.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if answer is not None else str(folder))

    install(None)
    return install


def test_the_gpu_is_asked(gpu):
    gpu("NVIDIA L4, 8.9, 550.54")
    assert Fingerprint.here("10.9.0") == BUILT


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (None, 0, "no nvidia-smi"),
        ("No devices were found", 6, "finds no GPU 0: No devices were found"),
        ("NVIDIA L4, 8.9", 0, "finds no GPU"),
        ("", 9, "it says nothing"),
    ],
)
def test_no_gpu_is_said_in_a_line(answer, status, message, gpu):
    gpu(answer, status)
    with pytest.raises(GpuError, match=message) as caught:
        gpu_in_use()
    assert "\n" not in str(caught.value)


def test_fingerprint_is_kept_and_damage_is_seen(tmp_path):
    path = tmp_path / FINGERPRINT_NAME
    BUILT.write(path)
    assert Fingerprint.read(path) == BUILT
    for content in ("[]", '{"gpu": "NVIDIA L4"}', path.read_text().replace('"8.9"', "8.9"), "not JSON"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"."):
            Fingerprint.read(path)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Fingerprint)])
def test_every_part_of_a_fingerprint_counts(field):
    assert BUILT.difference(BUILT) is None
    other = dataclasses.replace(BUILT, **{field: "another"})
    assert f"{field} {getattr(BUILT, field)}, here another" in BUILT.difference(other)


def test_deploy_says_why_an_engine_does_not_belong(gpu, monkeypatch, tmp_path):
    release = engine_release(tmp_path / "releases")
    assert release.manifest.engine == BUILT
    assert "cannot run here: this machine has no nvidia-smi" in engine_warning(release)
    gpu("NVIDIA L4, 8.9, 550.54")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT cannot be loaded" in engine_warning(release)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0"))
    assert engine_warning(release) is None
    gpu("NVIDIA L4, 8.9, 570.86")
    assert "driver 550.54, here 570.86; the ONNX graph answers instead" in engine_warning(release)
    plain = build_release(tmp_path / "plain", 1, {"encoder": (1, "a")})
    assert engine_warning(plain) is None


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 16), st.integers(0, 99)), min_size=1, max_size=8)


@given(shapes)
def test_batches_of_any_shape_one_after_the_other(batches):
    memory = Memory()
    engine = Engine(memory)
    runner = EngineRunner(engine, memory, [(2, 8), (4, 8), (4, 16)])
    buffers = len(memory.buffers)
    for rows, length, seed in batches:
        generator = np.random.default_rng(seed)
        ids, mask = generator.integers(1, 50, (rows, length)), generator.integers(0, 2, (rows, length))
        answer = runner.run(ids, mask)
        np.testing.assert_array_equal(answer, expected(ids, mask))
        assert answer.base is None  # the next batch must not change it
    assert len(memory.buffers) == buffers
    assert len(engine.contexts) <= 2


def test_a_common_shape_is_recorded_once_and_replayed():
    memory = Memory()
    engine = Engine(memory)
    runner = EngineRunner(engine, memory, [(1, 8), (4, 8)])
    for rows in (3, 4, 3):
        ids = np.full((rows, 8), rows)
        np.testing.assert_array_equal(runner.run(ids, np.ones_like(ids)), expected(ids, np.ones_like(ids)))
    assert (memory.captured, memory.launched) == (1, 3)
    assert set(engine.ran) == {(4, 8)}  # filled up
    runner.run(np.ones((2, 5), np.int64), np.ones((2, 5), np.int64))
    assert engine.ran[-1] == (2, 5)  # a rare shape runs as it is
    assert memory.captured == 1


def test_a_shape_without_a_profile_is_an_error():
    memory = Memory()
    runner = EngineRunner(Engine(memory), memory)
    for shape in ((5, 8), (1, 17)):
        with pytest.raises(ShapeError, match="no profile for"):
            runner.run(np.ones(shape, np.int64), np.ones(shape, np.int64))
    with pytest.raises(ShapeError):
        EngineRunner(Engine(memory), memory, [(8, 8)])


def test_cuda_without_bindings_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(GpuError, match=r"requirements/tensorrt\.txt"):
        Cuda()


def gpu_config(**changes: Any) -> dict[str, Any]:
    """The variant as Triton hands it over."""
    spec = {"batch_size": 4, "input": {name: {"dim": ["8"]} for name in ("input_ids", "attention_mask")}}
    return {
        "name": "shop_encoder",
        "default_model_filename": "model.plan",
        "max_batch_size": 4,
        "input": [{"name": name, "data_type": "TYPE_INT64"} for name in ("input_ids", "attention_mask")],
        "output": [{"name": "instruction_vector", "data_type": "TYPE_FP32"}],
        "instance_group": [{"kind": "KIND_GPU", "profile": ["0", "1"]}],
        "optimization": {"cuda": {"graphs": True, "graph_spec": [spec]}},
        "parameters": {},
    } | changes


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = install_triton(monkeypatch)
    module.warned = []
    module.Logger.log_warn = staticmethod(module.warned.append)
    for name in [one for one in sys.modules if one == "engines" or one.startswith("engines.")]:
        monkeypatch.delitem(sys.modules, name)
    return module


@pytest.fixture
def load(triton: Any, tmp_path: Path) -> Any:
    monkey_path = str(ROOT / "serving")
    sys.path.insert(0, monkey_path)
    backend: Any = load_model_file(ROOT / "serving" / "backends" / "tensorrt" / "model.py", tmp_path / "tensorrt")
    folder = tmp_path / "shop_encoder" / "1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"engine")
    BUILT.write(folder / FINGERPRINT_NAME)
    save_counting_graph(folder / "model.onnx")

    def load(config: dict[str, Any], kind: str = "GPU") -> Any:
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder.parent),
                "model_version": "1",
                "model_name": "shop_encoder",
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
            }
        )
        return model

    load.backend = backend  # type: ignore[attr-defined]
    return load


def save_counting_graph(path: Path) -> None:
    """What `Engine` answers, as an ONNX graph: count of tokens, their sum, length."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["text"]),
        helper.make_node("ReduceSum", ["attention_mask", "axes"], ["count"], keepdims=1),
        helper.make_node("ReduceSum", ["text", "axes"], ["sum"], keepdims=1),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1),
        helper.make_node("Expand", ["length", "size"], ["lengths"]),
        helper.make_node("Concat", ["count", "sum", "lengths"], ["all"], axis=1),
        helper.make_node("Cast", ["all"], ["instruction_vector"], to=TensorProto.FLOAT),
    ]
    nodes.insert(4, helper.make_node("Shape", ["count"], ["size"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("instruction_vector", TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(nodes, "toy", inputs, [output], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def request(rows: int, length: int) -> Request:
    ids = np.arange(rows * length, dtype=np.int64).reshape(rows, length)
    return Request(input_ids=ids, attention_mask=(ids % 3 > 0).astype(np.int64))


def check_answers(model: Any) -> None:
    requests = [request(1, 8), request(3, 16), request(2, 8), request(4, 8)]
    for one, response in zip(requests, model.execute(requests), strict=True):
        assert response.error is None
        values = one.tensors
        np.testing.assert_array_equal(
            response.outputs["instruction_vector"], expected(values["input_ids"], values["attention_mask"])
        )


def put_gpu(load: Any, monkeypatch: pytest.MonkeyPatch, gpu: Any, engine: Any = None) -> Engine:
    """A machine on which the engine belongs."""
    memory = Memory()
    engine = Engine(memory) if engine is None else engine
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"engine" else None)
    logger = type("Logger", (), {"WARNING": 1, "__init__": lambda *_: None})
    module = SimpleNamespace(__version__="10.9.0", Runtime=lambda _: runtime, Logger=logger)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(load.backend, "Cuda", lambda _: memory)
    gpu("NVIDIA L4, 8.9, 550.54")
    return engine


def test_the_engine_answers_where_it_belongs(load, triton, monkeypatch, gpu):
    engine = put_gpu(load, monkeypatch, gpu)
    check_answers(load(gpu_config()))
    assert triton.warned == []
    assert (4, 8) in engine.ran
    assert engine.memory.captured == 1


@pytest.mark.parametrize("reason", ["driver", "gpu", "no TensorRT", "no GPU", "no fingerprint", "damaged engine"])
def test_the_onnx_graph_answers_where_it_does_not(reason, load, triton, monkeypatch, gpu, tmp_path):
    engine = put_gpu(load, monkeypatch, gpu)
    folder = tmp_path / "shop_encoder" / "1"
    if reason == "driver":
        gpu("NVIDIA L4, 8.9, 570.86")
    elif reason == "gpu":
        gpu("NVIDIA H100 80GB HBM3, 9.0, 550.54")
    elif reason == "no TensorRT":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    elif reason == "no GPU":
        gpu(None)
    elif reason == "no fingerprint":
        (folder / FINGERPRINT_NAME).unlink()
    else:
        (folder / "model.plan").write_bytes(b"damaged")
    check_answers(load(gpu_config()))
    [warning] = triton.warned
    assert "the ONNX graph answers instead" in warning
    assert engine.ran == []


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({}, "CPU", "KIND_GPU only"),
        ({"parameters": {"plugins": {"string_value": "x"}}}, "GPU", "plugins"),
        ({"output": [{"name": "instruction_vector", "data_type": "TYPE_FP16"}]}, "GPU", "TYPE_FP16"),
        ({"input": [{"name": "input_ids", "data_type": "TYPE_INT64"}]}, "GPU", "input"),
        ({"max_batch_size": 0}, "GPU", "max_batch_size"),
        ({"instance_group": [{"profile": ["0"]}]}, "GPU", "profiles 0 to 1"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(change, kind, message, load, monkeypatch, gpu):
    put_gpu(load, monkeypatch, gpu)
    with pytest.raises(TritonModelException, match=message):
        load(gpu_config(**change), kind)


def test_a_request_that_no_profile_takes_is_refused_alone(load, monkeypatch, gpu):
    put_gpu(load, monkeypatch, gpu)
    good, bad = load(gpu_config()).execute([request(1, 8), request(1, 17)])
    assert good.error is None
    assert "no profile for 1 rows of 17 tokens" in bad.error.message
    assert bad.error.code == "INVALID_ARG"
