"""The `tensorrt` backend: batches run on an engine, and the ONNX graph stands in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from engine_fakes import BUILT, TENSORRT, WIDTH, Engine, Memory, expected
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from serving_helpers import ROOT, Request, TritonModelException, install_triton, load_model_file

from serving.engines.fingerprint import FINGERPRINT_NAME
from serving.engines.gpu_error import GpuError
from serving.engines.runner import EngineRunner, ShapeError

shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 16), st.integers(0, 99)), min_size=1, max_size=8)


@given(shapes)
def test_batches_of_any_shape_one_after_the_other(batches):
    memory = Memory()
    engine = Engine(memory)
    runner = EngineRunner(TENSORRT, engine, memory, [(2, 8), (4, 8), (4, 16)])
    made = len(memory.buffers), len(engine.contexts), memory.captured
    for rows, length, seed in batches:
        generator = np.random.default_rng(seed)
        ids, mask = generator.integers(1, 50, (rows, length)), generator.integers(0, 2, (rows, length))
        answer = runner.run(ids, mask)
        np.testing.assert_array_equal(answer, expected(ids, mask))
        assert answer.base is None  # the next batch must not change it
    assert (len(memory.buffers), len(engine.contexts), memory.captured) == made  # nothing is left for requests to make
    assert len({context.memory for context in engine.contexts}) == 1


def test_common_shapes_are_recorded_once_and_replayed():
    memory = Memory()
    engine = Engine(memory)
    runner = EngineRunner(TENSORRT, engine, memory, [(1, 8), (4, 8), (4, 8)])
    assert memory.captured == 2
    engine.ran.clear()
    for rows in (3, 4, 3):
        ids = np.full((rows, 8), rows)
        np.testing.assert_array_equal(runner.run(ids, np.ones_like(ids)), expected(ids, np.ones_like(ids)))
    assert (memory.captured, memory.launched) == (2, 3)
    assert set(engine.ran) == {(4, 8)}  # filled up
    runner.run(np.ones((2, 5), np.int64), np.ones((2, 5), np.int64))
    assert engine.ran[-1] == (2, 5)  # a rare shape runs as it is
    assert memory.captured == 2


def test_what_shapes_are_recorded_with_are_tokens():
    """Memory of the GPU's driver comes with whatever was in it; no table has a row for that."""
    memory = Memory()
    seen = []
    to_device = memory.to_device
    memory.to_device = lambda address, values, size: (seen.append(int(values.max())), to_device(address, values, size))
    EngineRunner(TENSORRT, Engine(memory), memory, [(4, 8)])
    assert set(seen) == {0}


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_gpu_without_room_for_all_contexts_says_so_at_once(room):
    memory = Memory()
    with pytest.raises(GpuError, match="memory is short"):
        EngineRunner(TENSORRT, Engine(memory, room), memory, [(1, 8), (4, 8)])


def test_a_shape_without_a_profile_is_an_error():
    memory = Memory()
    runner = EngineRunner(TENSORRT, Engine(memory), memory)
    for shape in ((5, 8), (1, 17), (1, 1000)):
        with pytest.raises(ShapeError, match="no profile for"):
            runner.run(np.ones(shape, np.int64), np.ones(shape, np.int64))
    with pytest.raises(ShapeError):
        EngineRunner(TENSORRT, Engine(memory), memory, [(8, 8)])


TOO_LARGE = {"batch_size": 8, "input": {name: {"dim": ["8"]} for name in ("input_ids", "attention_mask")}}


def gpu_config(**changes: Any) -> dict[str, Any]:
    """The variant as Triton hands it over."""
    spec = {"batch_size": 4, "input": {name: {"dim": ["8"]} for name in ("input_ids", "attention_mask")}}
    return {
        "name": "shop_encoder",
        "default_model_filename": "model.plan",
        "max_batch_size": 4,
        "input": [
            {"name": name, "data_type": "TYPE_INT64", "dims": ["-1"]} for name in ("input_ids", "attention_mask")
        ],
        "output": [{"name": "instruction_vector", "data_type": "TYPE_FP32", "dims": [str(WIDTH)]}],
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


def check_answers(model: Any, *, padded: bool = True) -> None:
    """Of all three numbers; of the length only where padding is computed on, as an engine does."""
    columns = WIDTH if padded else WIDTH - 1
    requests = [request(1, 8), request(3, 16), request(2, 8), request(4, 8)]
    for one, response in zip(requests, model.execute(requests), strict=True):
        assert response.error is None
        values = one.tensors
        np.testing.assert_array_equal(
            response.outputs["instruction_vector"][:, :columns],
            expected(values["input_ids"], values["attention_mask"])[:, :columns],
        )


def put_gpu(load: Any, monkeypatch: pytest.MonkeyPatch, gpu: Any, engine: Any = None) -> Engine:
    """A machine on which the engine belongs."""
    engine = Engine(Memory()) if engine is None else engine
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"engine" else None)
    logger = type("Logger", (), {"WARNING": 1, "__init__": lambda *_: None})
    module = SimpleNamespace(__version__="10.9.0", Runtime=lambda _: runtime, Logger=logger, **vars(TENSORRT))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(load.backend, "Cuda", lambda _: engine.memory)
    gpu("NVIDIA L4, 8.9, 550.54")
    return engine


def test_the_engine_answers_where_it_belongs(load, triton, monkeypatch, gpu):
    engine = put_gpu(load, monkeypatch, gpu)
    check_answers(load(gpu_config()))
    assert triton.warned == []
    assert (4, 8) in engine.ran
    assert engine.memory.captured == 1
    assert not engine.memory.closed


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("driver", "driver 550.54, here 570.86; export again on this host"),
        ("gpu", "export again on this host"),
        ("no TensorRT", "tensorrt"),
        ("no GPU", "no nvidia-smi"),
        ("no fingerprint", "No such file"),
        ("damaged engine", "TensorRT refuses the engine"),
        ("driver older than TensorRT's CUDA", "update the driver"),
        ("no memory for a buffer", "cudaMalloc failed: out of memory"),
        ("no memory for a context", "memory is short"),
        ("anything else", "(KeyError)"),
    ],
)
def test_the_onnx_graph_answers_where_it_does_not(reason, said, load, triton, monkeypatch, gpu, tmp_path):
    engine = put_gpu(load, monkeypatch, gpu)
    folder = tmp_path / "shop_encoder" / "1"

    def fail(error: Exception) -> Any:
        raise error

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
    elif reason == "damaged engine":
        (folder / "model.plan").write_bytes(b"damaged")
    elif reason == "driver older than TensorRT's CUDA":
        null = TypeError("pybind11::init(): factory function returned nullptr")
        monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", lambda _: fail(null))
    elif reason == "no memory for a buffer":
        error = load.backend.GpuError("cudaMalloc failed: out of memory")
        engine.memory.device_buffer = lambda _: fail(error)
    elif reason == "no memory for a context":
        engine.room = 2
    else:
        engine.get_tensor_shape = lambda _: fail(KeyError("a word of TensorRT"))
    check_answers(load(gpu_config()), padded=False)
    [warning] = triton.warned
    assert said in warning
    assert "the ONNX graph answers instead" in warning
    assert ("export again" in warning) == (reason in {"driver", "gpu"})
    taken = reason in {"damaged engine", "driver older than TensorRT's CUDA", "anything else"} or "memory" in reason
    assert engine.memory.closed == taken  # what it had of the GPU is given back


def test_the_graph_in_the_engines_place_runs_as_the_onnxruntime_backend_runs_it(load, monkeypatch, gpu):
    put_gpu(load, monkeypatch, gpu)
    gpu(None)
    opened = []
    original = load.backend.open_engine
    monkeypatch.setattr(load.backend, "open_engine", lambda *given: opened.append(given) or original(*given))
    load(gpu_config())
    model = load(gpu_config(parameters={"intra_op_thread_count": {"string_value": "3"}}))
    assert [(engine, path.name, threads) for engine, path, threads in opened] == [
        ("onnxruntime", "model.onnx", 1),
        ("onnxruntime", "model.onnx", 3),
    ]
    short, full = np.zeros((2, 16), np.int64), np.ones((2, 16), np.int64)
    short[:, :5] = 1
    answers = model.execute([Request(input_ids=one, attention_mask=one) for one in (short, full)])
    lengths = [one.outputs["instruction_vector"][:, 2].tolist() for one in answers]
    assert lengths == [[5, 5], [16, 16]]  # without the padding, in runs of like length


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({}, "CPU", "KIND_GPU only"),
        ({"parameters": {"plugins": {"string_value": "x"}}}, "GPU", "plugins"),
        ({"parameters": {"intra_op_thread_count": {"string_value": "many"}}}, "GPU", "'many'"),
        ({"optimization": {"cuda": {"busy_wait_events": True}}}, "GPU", "optimization.cuda.busy_wait_events"),
        ({"output": [{"name": "instruction_vector", "data_type": "TYPE_FP16", "dims": ["3"]}]}, "GPU", "TYPE_FP16"),
        ({"output": [{"name": "instruction_vector", "data_type": "TYPE_FP32", "dims": ["999"]}]}, "GPU", "999"),
        ({"output": [{"name": "vector", "data_type": "TYPE_FP32", "dims": ["3"]}]}, "GPU", "instruction_vector"),
        ({"input": [{"name": "input_ids", "data_type": "TYPE_INT64", "dims": ["-1"]}]}, "GPU", "attention_mask"),
        ({"max_batch_size": 0}, "GPU", "max_batch_size"),
        ({"max_batch_size": 5}, "GPU", "max_batch_size is 5 in the config, the engine takes 4"),
        ({"instance_group": [{"profile": ["0"]}]}, "GPU", "profiles 0 to 1"),
        ({"optimization": {"cuda": {"graphs": True, "graph_spec": [TOO_LARGE]}}}, "GPU", "graph_spec: .* 8 rows"),
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
