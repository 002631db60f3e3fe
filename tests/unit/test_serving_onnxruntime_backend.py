"""The Python-based onnxruntime backend, with real small graphs: what it refuses, what it honours, what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from serving_helpers import ROOT, Request, TritonModelException, install_triton, load_model_file

MODEL_FILE = ROOT / "serving" / "backends" / "onnxruntime" / "model.py"


def save_graph(path: Path, *, batch: Any = "batch", width: Any = "width") -> None:
    """`total = sum(ids * mask)` over the row, and `doubled = ids + ids`; INT64 in, INT64 and FP32 out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axes"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["sum"], ["total"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ids", "ids"], ["doubled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, width]) for name in ("ids", "mask")],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [batch, 1]),
            helper.make_tensor_value_info("doubled", TensorProto.INT64, [batch, width]),
        ],
        [axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def config(**changes: Any) -> dict[str, Any]:
    """A model config as Triton hands it over."""
    settings: dict[str, Any] = {
        "name": "toy",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": 32,
        "input": [
            {"name": "ids", "data_type": "TYPE_INT64", "dims": [-1]},
            {"name": "mask", "data_type": "TYPE_INT64", "dims": [-1]},
        ],
        "output": [
            {"name": "total", "data_type": "TYPE_FP32", "dims": [1]},
            {"name": "doubled", "data_type": "TYPE_INT64", "dims": [-1]},
        ],
        "optimization": {"input_pinned_memory": {"enable": True}, "output_pinned_memory": {"enable": True}},
        "parameters": {},
    }
    return settings | changes


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {name.replace("__", "."): {"string_value": value} for name, value in values.items()}}


def tensors(role: str, position: int, **change: Any) -> dict[str, Any]:
    entries = config()[role]
    entries[position] = entries[position] | change
    return {role: entries}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    install_triton(monkeypatch)
    return load_model_file(MODEL_FILE, tmp_path / "onnxruntime")


@pytest.fixture
def load(backend: Any, tmp_path: Path) -> Any:
    def load(model_config: dict[str, Any], kind: str = "CPU", **shape: Any) -> Any:
        save_graph(tmp_path / "toy" / "3" / "model.onnx", **shape)
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(model_config),
                "model_repository": str(tmp_path / "toy"),
                "model_version": "3",
                "model_name": "toy",
                "model_instance_kind": kind,
            }
        )
        return model

    return load


def request(rows: list[list[int]]) -> Request:
    ids = np.array(rows, dtype=np.int64)
    return Request(ids=ids, mask=(ids % 2).astype(np.int64))


batches = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99)).map(
        lambda shape: np.random.default_rng(shape[2]).integers(0, 100, size=shape[:2]).tolist()
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(batches)
def test_requests_of_any_shapes_get_the_answers_they_get_alone(load, batches):
    model = load(config())
    responses = model.execute([request(rows) for rows in batches])
    assert len(responses) == len(batches)
    for rows, response in zip(batches, responses, strict=True):
        ids = np.array(rows)
        np.testing.assert_array_equal(response.outputs["doubled"], 2 * ids)
        np.testing.assert_array_equal(response.outputs["total"], (ids * (ids % 2)).sum(axis=1, keepdims=True))
        assert response.outputs["total"].dtype == np.float32
        assert all(values.flags.c_contiguous for values in response.outputs.values())


def save_text_graph(path: Path) -> None:
    """`total = sum(ids * mask)` of a text, and `width`, how many places the graph was given for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axes"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["sum"], ["total"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["input_ids", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axes"], ["width"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("width", TensorProto.INT64, ["batch", 1]),
        ],
        [
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("axes", 1), ("zero", 0), ("one", 1))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


TEXT_CONFIG = config(
    input=[{"name": name, "data_type": "TYPE_INT64", "dims": [-1]} for name in ("input_ids", "attention_mask")],
    output=[
        {"name": "total", "data_type": "TYPE_FP32", "dims": [1]},
        {"name": "width", "data_type": "TYPE_INT64", "dims": [1]},
    ],
)


def load_text_model(backend: Any, folder: Path, **changes: Any) -> Any:
    save_text_graph(folder / "text" / "1" / "model.onnx")
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(TEXT_CONFIG | changes),
            "model_repository": str(folder / "text"),
            "model_version": "1",
            "model_name": "text",
            "model_instance_kind": "CPU",
        }
    )
    return model


@pytest.fixture
def text_model(backend: Any, tmp_path: Path) -> Any:
    return load_text_model(backend, tmp_path)


def texts(lengths: list[int], bucket: int) -> Request:
    """A request of texts of some lengths, padded; what stands behind a text's end is noise."""
    ids = np.random.default_rng(sum(lengths)).integers(1, 1_000, (len(lengths), bucket))
    return Request(input_ids=ids, attention_mask=(np.arange(bucket) < np.array(lengths)[:, None]).astype(np.int64))


requests_of_texts = st.lists(
    st.tuples(st.lists(st.integers(0, 64), min_size=1, max_size=4), st.sampled_from([64, 80])), max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(requests_of_texts)
def test_texts_of_all_lengths_get_the_answers_they_get_alone(text_model, asked):
    requests = [texts(lengths, bucket) for lengths, bucket in asked]
    responses = text_model.execute(requests)
    assert len(responses) == len(requests)
    for one, response in zip(requests, responses, strict=True):
        ids, mask = one.tensors["input_ids"], one.tensors["attention_mask"]
        np.testing.assert_array_equal(response.outputs["total"], (ids * mask).sum(axis=1, keepdims=True))
        assert (response.outputs["width"][:, 0] >= mask.sum(axis=1)).all()
        assert (response.outputs["width"] <= max(1, *(max(lengths) for lengths, _ in asked))).all()


def test_a_text_is_computed_without_the_padding_of_its_bucket(text_model):
    [alone] = text_model.execute([texts([19], 32)])
    assert alone.outputs["width"].tolist() == [[19]]
    long, short = text_model.execute([texts([60, 60], 64), texts([5, 5], 16)])
    assert long.outputs["width"].tolist() == [[60], [60]]
    assert short.outputs["width"].tolist() == [[5], [5]]


def warm_up(*lengths: int) -> list[dict[str, Any]]:
    """As a release has it, a sample a bucket."""
    inputs = ("input_ids", "attention_mask")
    return [
        {"batch_size": 1, "inputs": {name: {"data_type": "TYPE_INT64", "dims": [length]} for name in inputs}}
        for length in lengths
    ]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_text_longer_than_the_last_bucket_is_refused_alone(monkeypatch, tmp_path, name):
    """The tokenizer step sends none, and what a caller sends by itself would cost any time."""
    if name == "openvino":
        pytest.importorskip("openvino")
    install_triton(monkeypatch)
    backend = load_model_file(ROOT / "serving" / "backends" / name / "model.py", tmp_path / name)
    model = load_text_model(backend, tmp_path, model_warmup=warm_up(16, 32))
    long = texts([3], 33)
    uneven = Request(input_ids=np.ones((1, 16), np.int64), attention_mask=np.ones((1, 9_000), np.int64))
    good, *bad, last = model.execute([texts([20], 32), long, uneven, texts([5, 16], 16)])
    assert good.outputs["total"].shape == (1, 1)
    assert last.outputs["total"].shape == (2, 1)
    for response, tokens in zip(bad, ("33", "9,000"), strict=True):
        assert response.error.code == "INVALID_ARG"
        assert f"a text has {tokens} tokens; this encoder is served texts of at most 32" in response.error.message
    [without] = load_text_model(backend, tmp_path).execute([texts([3], 9_000)])
    assert without.error is None, "a config that warms nothing up does not say how long texts get"


def test_requests_of_one_shape_run_as_one_batch(load):
    model = load(config())
    real, shapes = model.session, []

    class Counting:
        def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
            shapes.append(feeds["ids"].shape)
            return real.run(names, feeds)

    model.session = Counting()
    model.execute([request([[1, 2]]), request([[1, 2, 3]]), request([[4, 5], [6, 7]]), request([[7, 8, 9]])])
    assert sorted(shapes) == [(2, 3), (3, 2)]


def test_a_batch_of_long_rows_runs_in_parts_and_answers_the_same(load, monkeypatch):
    model = load(config())
    runs: list[int] = []
    real = model.session

    class Watched:
        def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
            runs.append(len(feed["ids"]))
            return real.run(names, feed)

    monkeypatch.setattr(model, "session", Watched())
    rows = np.random.default_rng(0).integers(0, 100, size=(20, 256)).tolist()
    [response] = model.execute([request(rows)])
    assert runs == [1] * 20
    np.testing.assert_array_equal(response.outputs["doubled"], 2 * np.array(rows))


def test_a_request_that_the_graph_refuses_fails_alone(load):
    model = load(config())
    bad = Request(ids=np.ones((1, 2), np.int64), mask=np.ones((1, 3), np.int64))
    good, failed, missing, last = model.execute(
        [request([[1, 2]]), bad, Request(ids=np.ones((1, 2), np.int64)), request([[3, 4]])]
    )
    assert good.outputs["doubled"].tolist() == [[2, 4]]
    assert last.outputs["doubled"].tolist() == [[6, 8]]
    assert failed.error.code == "INTERNAL"
    assert (missing.error.code, missing.error.message) == ("INVALID_ARG", "input mask is missing")


def test_outputs_that_the_config_leaves_out_are_left_out(load):
    model = load(config(output=config()["output"][1:]))
    [response] = model.execute([request([[1, 2]])])
    assert list(response.outputs) == ["doubled"]


@pytest.mark.parametrize(
    ("changes", "shape", "said"),
    [
        (tensors("input", 0, data_type="TYPE_INT32"), {}, ["ids", "TYPE_INT32", "int64"]),
        (tensors("output", 0, data_type="TYPE_FP16"), {}, ["total", "TYPE_FP16", "float"]),
        (tensors("input", 1, name="attention"), {}, ["mask"]),
        (tensors("output", 1, name="other"), {}, ["other", "doubled"]),
        ({"input": config()["input"][:1]}, {}, ["mask"]),
        ({"input": [*config()["input"], {"name": "third", "data_type": "TYPE_INT64", "dims": [1]}]}, {}, ["third"]),
        (tensors("input", 0, dims=[-1, 1]), {}, ["ids", "[-1, 1]"]),
        (tensors("output", 0, dims=[2]), {}, ["total", "[2]"]),
        (tensors("input", 0, dims=[4]), {"width": 5}, ["ids", "[4]", "5"]),
        ({"max_batch_size": 0}, {}, ["ids"]),  # the batch dimension then belongs to the dims
    ],
)
def test_a_config_that_does_not_fit_the_graph_is_refused(load, changes, shape, said):
    with pytest.raises(TritonModelException) as caught:
        load(config(**changes), **shape)
    for part in said:
        assert part in str(caught.value)


def test_a_graph_of_fixed_batch_is_refused_as_the_native_backend_does(load):
    """It could answer one size of batch alone; the native backend wants a variable first dimension."""
    with pytest.raises(TritonModelException, match="batch"):
        load(config(), batch=1)


def test_a_variable_dim_over_a_fixed_one_is_refused_as_the_native_backend_does(load):
    fixed_outputs = {"output": [config()["output"][0], config()["output"][1] | {"dims": [5]}]}
    with pytest.raises(TritonModelException, match="ids"):
        load(config(**fixed_outputs), width=5)


def test_another_instance_kind_is_refused(load):
    with pytest.raises(TritonModelException, match="KIND_CPU"):
        load(config(), kind="GPU")


def test_parameters_become_session_options(backend):
    options = backend.session_options(
        config(
            **parameters(
                intra_op_thread_count="3",
                inter_op_thread_count="2",
                execution_mode="1",
                enable_mem_arena="0",
                enable_mem_pattern="0",
                session__intra_op__allow_spinning="0",
            )
        )
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.enable_cpu_mem_arena is False
    assert options.enable_mem_pattern is False
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_defaults_are_those_of_the_native_backend(backend):
    options = backend.session_options(config())
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (0, 0)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.enable_cpu_mem_arena is True
    assert options.enable_mem_pattern is True
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@pytest.mark.parametrize(
    ("level", "expected"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
)
def test_graph_level_means_what_it_means_natively(backend, level, expected):
    options = backend.session_options(config(optimization={"graph": {"level": level}}))
    assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, expected)


@pytest.mark.parametrize(
    "name", ["intra_op_thread_cuont", "cudnn_conv_algo_search", "memory.enable_memory_arena_shrinkage"]
)
def test_an_unknown_parameter_is_refused_by_name(load, name):
    with pytest.raises(TritonModelException, match=name):
        load(config(parameters={name: {"string_value": "1"}, "intra_op_thread_count": {"string_value": "1"}}))


def test_an_accelerator_is_refused(load):
    accelerators = {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}
    with pytest.raises(TritonModelException, match="cpu_execution_accelerator"):
        load(config(optimization=accelerators))
    load(config(optimization={"execution_accelerators": {"cpu_execution_accelerator": []}}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intra_op_thread_count", "many"),
        ("execution_mode", "parallel"),
        ("enable_mem_arena", "true"),
        ("enable_mem_pattern", "yes"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(load, name, value):
    """Read as its opposite (`true` as off), it would be a setting that is silently ignored."""
    with pytest.raises(TritonModelException, match=name):
        load(config(**parameters(**{name: value})))
