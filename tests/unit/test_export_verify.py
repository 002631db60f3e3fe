"""Verification: a good graph passes, and every planted fault is found and placed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_encoders import words_model

from export.agreement import ranking_checks
from export.errors import ExportError, VerificationError
from export.graph_file import load_graph, open_served, save_graph
from export.head_graph import VECTOR
from export.int8 import quantize_encoder
from export.onnx_graph import export_encoder
from export.report import FP32_BUDGET, INT8_BUDGET, Check, VerificationReport
from export.speed import compare_speed
from export.task import Task, TaskComparison
from export.tokens import calibration_batches
from export.verify import verify_encoder
from training.dataset import Instruction, Item
from training.model import InstructionModel
from training.score import ScoreWeights

TEXTS = [" ".join(f"w{(start * step) % 97 + 3}" for step in range(1, 2 + start % 9)) for start in range(1, 60)]
BUCKETS = (8, 16)
ITEMS = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
LOOSE = INT8_BUDGET.model_copy(  # random weights lose more than trained ones
    update={
        "mean_cosine": 0.99,
        "min_cosine": 0.97,
        "shape_cosine": 0.9,
        "max_absolute": 0.2,
        "top_k_overlap": 0.5,
        "label_agreement": 0.8,
    }
)


@pytest.fixture(scope="module")
def model() -> InstructionModel:
    return words_model()


@pytest.fixture(scope="module")
def fp32(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "encoder.onnx"
    export_encoder(model, path)
    return path


@pytest.fixture(scope="module")
def int8(model, fp32) -> Path:
    quantize_encoder(fp32, fp32.parent / "int8.onnx", calibration_batches(model, TEXTS))
    return fp32.parent / "int8.onnx"


def test_good_graphs_pass_and_say_what_was_measured(model, fp32, int8):
    report = verify_encoder(fp32, model, TEXTS, BUCKETS, FP32_BUDGET, item_vectors=ITEMS)
    assert report.passed
    assert report.first_divergence is None
    assert set(report.shapes) == {(1, 1), (1, 8), (8, 8), (1, 16), (8, 16)}
    assert report.texts == len(TEXTS)
    written = json.loads(report.model_dump_json())
    assert written["passed"] is True
    assert VerificationReport.model_validate(written) == report
    assert "### encoder.onnx: passed" in report.markdown()
    assert verify_encoder(int8, model, TEXTS, BUCKETS, LOOSE, item_vectors=ITEMS).passed


def test_int8_is_held_to_a_tighter_budget_and_fails_it(model, int8):
    with pytest.raises(VerificationError, match=r"minimum cosine is .*, the bar is at least 0\.99999"):
        verify_encoder(int8, model, TEXTS, BUCKETS, FP32_BUDGET)


def tensor(graph: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    found = [tensor for tensor in graph.graph.initializer if tensor.name.endswith(ending)]
    assert found, [tensor.name for tensor in graph.graph.initializer]
    return found[0]


def change(graph: onnx.ModelProto, ending: str, by: Callable[[np.ndarray], np.ndarray]) -> None:
    target = tensor(graph, ending)
    target.CopyFrom(numpy_helper.from_array(by(numpy_helper.to_array(target).copy()), target.name))


def weight_of(graph: onnx.ModelProto, module: str) -> str:
    return next(node.input[1] for node in graph.graph.node if node.op_type == "MatMul" and module in node.name)


def one_nan(values: np.ndarray) -> np.ndarray:
    values.flat[0] = np.nan
    return values


def corrupted_weight(graph: onnx.ModelProto) -> None:
    change(graph, weight_of(graph, "layer.1.output.dense"), lambda values: values[::-1].copy())


def nan_weight(graph: onnx.ModelProto) -> None:
    change(graph, weight_of(graph, "layer.0.intermediate.dense"), one_nan)


def corrupted_table(graph: onnx.ModelProto) -> None:
    change(graph, "word_embeddings.weight", lambda values: np.roll(values, 1, axis=0))


def swap(graph: onnx.ModelProto) -> None:
    other = {"input_ids": "attention_mask", "attention_mask": "input_ids"}
    for node in graph.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def ignored_mask(graph: onnx.ModelProto) -> None:
    """Attention sees padding; the pool still leaves it out."""
    change(
        graph,
        next(
            name
            for node in graph.graph.node
            if node.op_type == "Mul"
            for name in node.input
            if name in {t.name for t in graph.graph.initializer} and numpy_helper.to_array(tensor(graph, name)) == -1e4
        ),
        np.zeros_like,
    )


def not_normalised(graph: onnx.ModelProto) -> None:
    """The last division gives its first input, twice the length: the direction is right, the vector is not."""
    last = graph.graph.node[-1]
    assert last.op_type == "Div"
    last.op_type = "Mul"


@pytest.mark.parametrize(
    ("fault", "failed", "place"),
    [
        (corrupted_weight, "minimum cosine", "encoder layer 2 of 2"),
        (nan_weight, "values that are not finite", "encoder layer 1 of 2"),
        (corrupted_table, "mean cosine", "the embedding tables"),
        (swap, "minimum cosine", "the embedding tables"),
        (ignored_mask, "difference that padding makes", "encoder layer 1 of 2"),
        (not_normalised, "greatest difference", "after the last encoder layer"),
    ],
)
def test_planted_fault_is_found_and_placed(fault, failed, place, model, fp32, tmp_path):
    graph = load_graph(fp32)
    fault(graph)
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, BUCKETS, FP32_BUDGET, item_vectors=ITEMS)
    report = caught.value.report
    assert not report.passed
    assert failed in [check.name for check in report.failed]
    assert place in report.first_divergence
    for said in ("faulty.onnx", failed, place):
        assert said in caught.value.message
    assert "FAILED" in report.markdown()
    assert "NaN" not in report.model_dump_json()


@pytest.mark.parametrize("factor", [0.1, 3])
def test_wrong_scale_of_a_quantised_input_is_found(factor, model, int8, tmp_path):
    graph = load_graph(int8)
    change(graph, "hidden_state_1/scale", lambda scale: np.array(scale * factor, np.float32))
    for node in graph.graph.node:  # wrong at QuantizeLinear alone
        if node.op_type == "DequantizeLinear" and node.input[1] == "hidden_state_1/scale":
            node.input[1] = "right"
    right = numpy_helper.to_array(tensor(load_graph(int8), "hidden_state_1/scale"))
    graph.graph.initializer.append(numpy_helper.from_array(right.copy(), "right"))
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, BUCKETS, LOOSE)
    assert "encoder layer 2 of 2" in caught.value.report.first_divergence


def test_an_answer_that_depends_on_its_neighbours_is_found(model, fp32, tmp_path):
    """As dynamic quantisation does: something is taken from the whole batch."""
    graph = load_graph(fp32)
    node = next(node for node in graph.graph.node if "hidden_state_1" in node.output)
    node.output[0] = "before"
    graph.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "little"))
    added = [
        onnx.helper.make_node("ReduceMax", ["before"], ["greatest"], keepdims=0),
        onnx.helper.make_node("Mul", ["greatest", "little"], ["share"]),
        onnx.helper.make_node("Mul", ["before", "share"], ["product"]),
        onnx.helper.make_node("Add", ["before", "product"], ["hidden_state_1"]),
    ]
    position = list(graph.graph.node).index(node) + 1
    for offset, extra in enumerate(added):
        graph.graph.node.insert(position + offset, extra)
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, BUCKETS, LOOSE)
    assert "difference that batch neighbours make" in [check.name for check in caught.value.report.failed]


def test_nothing_to_verify_with_is_an_error(model, fp32, tmp_path):
    with pytest.raises(ExportError, match="at least one text"):
        verify_encoder(fp32, model, [], BUCKETS, FP32_BUDGET)
    with pytest.raises(ExportError, match="one length bucket"):
        verify_encoder(fp32, model, TEXTS, (), FP32_BUDGET)
    with pytest.raises(ExportError, match="refuses the graph"):
        verify_encoder(tmp_path / "missing.onnx", model, TEXTS, BUCKETS, FP32_BUDGET)


def test_nan_never_passes():
    assert not Check.at_least("x", float("nan"), 0).passed
    assert not Check.at_most("x", float("nan"), 0).passed


def test_corrupted_codes_of_a_quantised_weight_are_found(model, int8, tmp_path):
    graph = load_graph(int8)
    product = next(node for node in graph.graph.node if node.op_type == "Gemm" and "layer.0.output" in node.name)
    codes = product.input[1].replace("/restored", "/codes")
    change(graph, codes, lambda values: -values)
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, BUCKETS, LOOSE)
    assert "encoder layer 1 of 2" in caught.value.report.first_divergence


def test_wrong_scale_of_a_quantised_weight_is_found(model, int8, tmp_path):
    graph = load_graph(int8)
    product = next(node for node in graph.graph.node if node.op_type == "Gemm" and "layer.1.intermediate" in node.name)
    change(graph, product.input[1].replace("/restored", "/scale"), lambda scale: np.roll(scale, 1) * np.float32(2))
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, BUCKETS, LOOSE)
    assert "encoder layer 2 of 2" in caught.value.report.first_divergence


class Ranked:
    """What `Task` reads of a run: four items, one a label, whose vectors are the axes."""

    labels = ("a", "b", "c", "d")
    score_weights = ScoreWeights(alpha=1, beta=0, gamma=0, delta=0, history_decay=1)

    def catalogue(self) -> list[Item]:
        return [Item(label, label, label, label, 0.0, {}) for label in self.labels]

    def item_vectors(self) -> np.ndarray:
        return np.eye(4, dtype=np.float32)


def instruction(label: str) -> Instruction:
    return Instruction(label, label, label, {}, {}, "test")


def test_task_compares_ranking_and_labels_pair_by_pair():
    asked = [instruction(label) for label in "abcdabcd"]
    right = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 2]
    wrong = right.copy()
    wrong[0] = right[1]  # one of eight is read as its neighbour
    labels, ranking = Task(Ranked(), asked).compare((right, right), (wrong, wrong))
    assert (labels.name, labels.torch, labels.graph) == ("top-1 label accuracy", 1, 7 / 8)
    assert labels.low <= labels.difference == -1 / 8 <= labels.high <= 0
    assert ranking.name == "NDCG@10"
    assert ranking.instructions == 8
    assert ranking.torch == 1
    assert ranking.graph < 1
    same = Task(Ranked(), asked).compare((right, wrong), (right, wrong))
    assert all(one.difference == one.low == one.high == 0 for one in same)


def test_an_instruction_that_nothing_answers_has_no_part_in_the_task():
    vectors = np.eye(4, dtype=np.float32)[:2]
    assert (
        Task(Ranked(), [instruction("unknown"), instruction("stranger")]).compare(
            (vectors, vectors), (vectors, vectors)
        )
        == []
    )


def test_a_graph_that_loses_the_task_is_refused_and_the_report_shows_both(model, fp32):
    class Broken(Task):
        def compare(self, torch, graph):
            return super().compare((torch[0], np.eye(4, dtype=np.float32)), (graph[0], np.eye(4)[::-1]))

    class Wide(Ranked):
        def item_vectors(self) -> np.ndarray:
            return np.eye(4, 32, dtype=np.float32)

    task = Broken(Wide(), [instruction(label) for label in "abcd"])
    with pytest.raises(
        VerificationError, match=r"loss of top-1 label accuracy is 1, the bar is at most 0\.001"
    ) as caught:
        verify_encoder(fp32, model, TEXTS[:4], BUCKETS, FP32_BUDGET, task=task)
    assert [check.name for check in caught.value.report.failed] == ["loss of top-1 label accuracy"]
    assert "| top-1 label accuracy | 4 | 1.0000 | 0.0000 | -100.00 | -100.00 to -100.00 |" in (
        caught.value.report.markdown()
    )


@pytest.mark.parametrize(
    ("budget", "instructions", "allowed"),
    [
        (INT8_BUDGET, 10, 0),  # a graph within the budget hardly ever loses one of ten
        (INT8_BUDGET, 60, 1),
        (INT8_BUDGET, 106, 2),
        (INT8_BUDGET, 300, 2),
        (INT8_BUDGET, 400, 2),  # that is the budget: from here on it decides alone
        (INT8_BUDGET, 1000, 5),
        (FP32_BUDGET, 40, 0),
        (FP32_BUDGET, 106, 1),
        (FP32_BUDGET, 1000, 2),
        (FP32_BUDGET, 3000, 3),
    ],
)
def test_the_loss_of_few_answers_that_chance_explains_refuses_no_graph(budget, instructions, allowed):
    task = Task(Ranked(), [instruction("a")] * instructions)
    right = np.tile(np.eye(4, dtype=np.float32)[0], (instructions, 1))
    for lost in (allowed, allowed + 1):
        graph = right.copy()
        graph[:lost] = np.eye(4, dtype=np.float32)[1]
        checks, _ = ranking_checks((right, right), (graph, graph), budget, None, task)
        [accuracy] = [check for check in checks if check.name == "loss of top-1 label accuracy"]
        assert accuracy.passed == (lost == allowed)


def test_a_small_loss_of_every_answer_is_not_chance():
    lost = TaskComparison(
        name="NDCG@10", instructions=100, torch=0.9, graph=0.88, difference=-0.02, low=-0.021, high=-0.019
    )
    assert INT8_BUDGET.task_bar(lost) == INT8_BUDGET.task_loss
    assert INT8_BUDGET.task_bar(lost.model_copy(update={"high": 0.0})) == 0.02


def test_speed_is_shown_beside_quality(model, fp32, int8):
    report = verify_encoder(fp32, model, TEXTS[:4], BUCKETS, FP32_BUDGET)
    assert "Time over" not in report.markdown()
    speed = compare_speed(fp32, int8, shapes=((1, 4), (2, 8)), rounds=2)
    assert [(one.batch, one.length) for one in speed] == [(1, 4), (2, 8)]
    assert all(one.ratio > 0 for one in speed)
    shown = report.model_copy(update={"speed": speed})
    assert "Time over FP32's in ONNX Runtime, one thread" in shown.markdown()
    assert VerificationReport.model_validate_json(shown.model_dump_json()) == shown


def test_a_graph_is_verified_in_the_engine_that_serves_it(model, fp32, int8):
    report = verify_encoder(fp32, model, TEXTS, (16,), FP32_BUDGET, item_vectors=ITEMS, engine="openvino")
    assert report.graph == "encoder.onnx in openvino"
    assert report.passed
    report = verify_encoder(int8, model, TEXTS, (16,), LOOSE, item_vectors=ITEMS, engine="openvino")
    assert max(one.measured for one in report.checks if "that padding makes" in one.name) <= 1e-5
    [speed] = compare_speed(fp32, int8, shapes=((1, 16),), rounds=1, engine="openvino")
    assert speed.ratio > 0


def test_a_fault_in_the_engine_that_serves_is_found_and_placed(model, fp32, tmp_path):
    graph = load_graph(fp32)
    corrupted_weight(graph)
    save_graph(graph, tmp_path / "faulty.onnx")
    with pytest.raises(VerificationError, match=r"faulty\.onnx in openvino") as caught:
        verify_encoder(tmp_path / "faulty.onnx", model, TEXTS, (16,), FP32_BUDGET, engine="openvino")
    assert "encoder layer 2 of 2" in caught.value.report.first_divergence


def test_an_engine_that_is_not_here_cannot_verify(model, fp32, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"verified with the engine that serves it.*instructrec\[openvino\]"):
        verify_encoder(fp32, model, TEXTS, BUCKETS, FP32_BUDGET, engine="openvino")
    monkeypatch.undo()
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="OpenVINO refuses the graph"):
        verify_encoder(tmp_path / "broken.onnx", model, TEXTS, BUCKETS, FP32_BUDGET, engine="openvino")


def test_openvino_computes_in_fp32_where_the_processor_could_in_bf16(fp32):
    batch = {"input_ids": np.array([[1, 5, 9, 2]]), "attention_mask": np.ones((1, 4), np.int64)}
    [one], [other] = (open_served(fp32, engine).run([VECTOR], batch) for engine in ("onnxruntime", "openvino"))
    np.testing.assert_allclose(one, other, atol=1e-5)
