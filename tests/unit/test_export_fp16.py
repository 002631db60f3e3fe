"""FP16: torch's numbers within rounding, FP32 where it matters, and overflow that no CPU would show."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny_encoders import words_model

from export.errors import VerificationError
from export.fp16 import LARGEST, export_fp16_encoder, half_model, overflow, verify_fp16
from export.graph_file import load_graph, open_session, save_graph
from export.report import FP16_BUDGET
from export.tokens import pad
from training.model import InstructionModel

TEXTS = [" ".join(f"w{(start * step) % 97 + 3}" for step in range(1, 2 + start % 9)) for start in range(1, 30)]
BUCKETS = (8, 16)
BUDGET = FP16_BUDGET.model_copy(update={"label_agreement": 0.9})  # random labels lie close together


@pytest.fixture(scope="module")
def model() -> InstructionModel:
    return words_model()


@pytest.fixture(scope="module")
def fp16(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "encoder-fp16.onnx"
    export_fp16_encoder(model, path)
    return path


def fails(graph: Path, model: InstructionModel) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify_fp16(graph, model, TEXTS, BUCKETS, BUDGET)
    return caught.value


def test_within_its_budget_and_says_what_was_looked_at(model, fp16):
    report = verify_fp16(fp16, model, TEXTS, BUCKETS, BUDGET)
    measured = {check.name: check.measured for check in report.checks}
    assert 0.9999 < measured["minimum cosine"] < 1
    assert 0.9999 < measured["minimum cosine, torch in half precision"] < 1
    assert 0 < measured["greatest magnitude inside"] < LARGEST / 2
    assert model.encoder.dtype == torch.float32  # it was copied, not changed


def test_weights_are_half_and_norms_and_output_are_not(fp16):
    graph = load_graph(fp16)
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    weights = [node.input[1] for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in types]
    assert {types[name] for name in weights} == {TensorProto.FLOAT16}
    norms = [name for node in graph.graph.node if node.op_type == "LayerNormalization" for name in node.input[1:]]
    assert norms
    assert {types[name] for name in norms} == {TensorProto.FLOAT}
    session = open_session(fp16)
    assert [one.type for one in session.get_inputs()] == ["tensor(int64)"] * 2
    assert [one.type for one in session.get_outputs()] == ["tensor(float)"]


def test_the_norm_survives_what_overflows_when_squared():
    norm = torch.nn.LayerNorm(8)
    model = words_model()
    model.encoder.embeddings.LayerNorm = norm
    states = torch.full((1, 8), 3e4, dtype=torch.float16)
    states[0, 0] = -6e4
    converted = half_model(model).encoder.embeddings.LayerNorm
    np.testing.assert_allclose(converted(states).float().detach(), norm(states.float()).detach(), rtol=1e-3)


def scale(source: Path, module: str, factor: float, target: Path) -> Path:
    """The graph with one module's weight multiplied."""
    graph = load_graph(source)
    name = next(node.input[1] for node in graph.graph.node if f"{module}/" in node.name)
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    with np.errstate(over="ignore"):
        scaled = (numpy_helper.to_array(weight).astype(np.float32) * factor).astype(np.float16)
    weight.CopyFrom(numpy_helper.from_array(scaled, name))
    save_graph(graph, target)
    return target


def test_an_activation_that_overflows_is_found_and_placed(model, fp16, tmp_path):
    """In FP32 nothing is wrong with it: the LayerNorm behind it takes the factor out again."""
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.encoder.encoder.layer[1].output.dense.weight.mul_(2e4)
    assert large.encoder.encoder.layer[1].output.dense.weight.abs().max() < LARGEST
    error = fails(scale(fp16, "layer.1.output.dense", 2e4, tmp_path / "overflow.onnx"), large)
    failed = {check.name for check in error.report.failed}
    assert {"greatest magnitude inside", "values that are not finite, torch in half precision"} <= failed
    assert "encoder.layer.1.output.dense" in error.report.first_divergence
    assert "encoder.layer.1.output.dense" in error.message


@pytest.mark.parametrize("factor", [4e4, 1e9])
def test_a_weight_scaled_in_the_graph_is_found_and_placed(factor, model, fp16, tmp_path):
    """By 4e4 its products overflow, by 1e9 the weight itself."""
    faulty = scale(fp16, "layer.0.intermediate.dense", factor, tmp_path / "faulty.onnx")
    assert "encoder.layer.0.intermediate.dense" in fails(faulty, model).report.first_divergence


def test_overflow_names_the_first_node_only():
    nodes = [
        onnx.helper.make_node("Cast", ["input_ids"], ["values"], name="values", to=TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["values", "factor"], ["product"], name="first"),
        onnx.helper.make_node("Mul", ["product", "factor"], ["vector"], name="second"),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = onnx.helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", "length"])
    factor = numpy_helper.from_array(np.array(100, np.float32), "factor")
    graph = onnx.helper.make_graph(nodes, "toy", inputs, [output], [factor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert overflow(model, [pad([[1, 6]])]) == (60000, None)
    assert overflow(model, [pad([[1]]), pad([[7]])])[1] == "second (tensor vector) goes beyond FP16's 65504"
    assert overflow(model, [pad([[700]])]) == (float("inf"), "first (tensor product) goes beyond FP16's 65504")
