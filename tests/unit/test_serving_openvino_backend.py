"""The Python-based openvino backend, with a real small graph: what it refuses, what it honours, what it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_helpers import ROOT, TritonModelException, install_triton, load_model_file
from test_serving_onnxruntime_backend import config, parameters, request, save_graph, tensors

MODEL_FILE = ROOT / "serving" / "backends" / "openvino" / "model.py"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    install_triton(monkeypatch)
    return load_model_file(MODEL_FILE, tmp_path / "openvino")


@pytest.fixture
def load(backend: Any, tmp_path: Path) -> Any:
    def load(model_config: dict[str, Any], kind: str = "CPU", **shape: Any) -> Any:
        save_graph(tmp_path / "toy" / "3" / "model.onnx", **shape)
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(model_config | {"backend": "openvino"}),
                "model_repository": str(tmp_path / "toy"),
                "model_version": "3",
                "model_name": "toy",
                "model_instance_kind": kind,
            }
        )
        return model

    return load


def test_it_answers_requests_of_any_shapes_as_the_graph_says(load):
    model = load(config(**parameters(INFERENCE_NUM_THREADS="1", NUM_STREAMS="1")))
    batches = [[[1, 2]], [[3, 4, 5], [6, 7, 8]], [[9, 10]], [[5]]]
    for rows, response in zip(batches, model.execute([request(rows) for rows in batches]), strict=True):
        ids = np.array(rows)
        np.testing.assert_array_equal(response.outputs["doubled"], 2 * ids)
        np.testing.assert_array_equal(response.outputs["total"], (ids * (ids % 2)).sum(axis=1, keepdims=True))
        assert response.outputs["total"].dtype == np.float32


def test_an_answer_outlives_the_next_run(load):
    model = load(config())
    [first] = model.execute([request([[1, 2]])])
    model.execute([request([[7, 8]])])
    assert first.outputs["doubled"].tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("changes", "shape", "said"),
    [
        (tensors("input", 0, data_type="TYPE_INT32"), {}, ["ids", "TYPE_INT32", "i64"]),
        (tensors("output", 1, name="other"), {}, ["other", "doubled"]),
        ({"input": config()["input"][:1]}, {}, ["mask"]),
        (tensors("output", 0, dims=[2]), {}, ["total", "[2]"]),
        ({}, {"batch": 1}, ["batch"]),
    ],
)
def test_a_config_that_does_not_fit_the_graph_is_refused(load, changes, shape, said):
    with pytest.raises(TritonModelException) as caught:
        load(config(**changes), **shape)
    for part in said:
        assert part in str(caught.value)


def test_another_instance_kind_is_refused(load):
    with pytest.raises(TritonModelException, match="KIND_CPU"):
        load(config(), kind="GPU")


def test_parameters_become_properties(backend):
    found = backend.properties(
        config(
            **parameters(
                INFERENCE_NUM_THREADS="3",
                COMPILATION_NUM_THREADS="2",
                NUM_STREAMS="auto",
                PERFORMANCE_HINT="latency",
                HINT_BF16="yes",
            )
        )
    )
    assert found == {
        "INFERENCE_NUM_THREADS": 3,
        "COMPILATION_NUM_THREADS": 2,
        "NUM_STREAMS": "AUTO",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    assert backend.properties(config(**parameters(NUM_STREAMS="4"))) == {"NUM_STREAMS": 4}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INFERENCE_NUM_THREADS", "many"),
        ("NUM_STREAMS", "-1"),
        ("PERFORMANCE_HINT", "FAST"),
        ("HINT_BF16", "NO"),
        ("RESHAPE_IO_LAYERS", "YES"),
        ("intra_op_thread_count", "1"),
    ],
)
def test_what_it_does_not_understand_is_refused_by_name(load, name, value):
    with pytest.raises(TritonModelException, match=name):
        load(config(**parameters(**{name: value})))


def test_without_openvino_the_error_says_what_to_do(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(TritonModelException, match=r"instructrec\[openvino\].*serving.engine=onnxruntime"):
        load(config())
