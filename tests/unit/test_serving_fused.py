"""The fused step answers as the four steps do, whatever shares the batch, and with either engine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from serving_helpers import ROOT, Request, catalogue_of, install_triton, load_model_file
from test_serving_tokenization import tokenizer_file

from serving.steps.catalogue import ScoreWeights
from serving.steps.text_encoder import Head

WIDTH, LABELS, ITEMS, VOCABULARY = 8, 3, 60, 30_522
WEIGHTS = ScoreWeights(alpha=2, beta=0.5, gamma=0.7, delta=0.1, history_decay=0.5)
TEXTS = [
    "a blue shirt",
    "mug",
    "something warm that my daughter can wear on the way to school in winter " * 4,
    "hat",
    "running shoes for wide feet, not too expensive",
]


def save_encoder(path: Path) -> None:
    """The masked mean of a table's rows, made of length 1: no padding shows in it."""
    table = np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["states", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "length_axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceL2", ["sum", "length_axis"], ["norm"], keepdims=1),
        helper.make_node("Div", ["sum", "norm"], ["instruction_vector"]),
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    vector = helper.make_tensor_value_info("instruction_vector", TensorProto.FLOAT, ["batch", WIDTH])
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "length_axis"),
    ]
    graph = helper.make_graph(nodes, "encoder", ids, [vector], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    save_encoder(path)
    return path


def head() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.normal(size=(LABELS, WIDTH)).astype(np.float32), np.arange(LABELS, dtype=np.float32)


def write_catalogue(folder: Path) -> None:
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(ITEMS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue_of(
        vectors, np.arange(ITEMS) % LABELS, generator.random(ITEMS), WEIGHTS, labels=LABELS, release="4"
    ).write(folder)


def load(name: str, folder: Path, parameters: dict[str, str]) -> Any:
    for module in [one for one in sys.modules if one == "steps" or one.startswith("steps.")]:
        del sys.modules[module]
    model = load_model_file(ROOT / "model_repository" / name / "1" / "model.py", folder).TritonPythonModel()
    config = {
        "instance_group": [{"count": 1}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    model.initialize({"model_config": json.dumps(config), "model_name": f"shop_{name}", "model_version": "4"})
    return model


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_triton(monkeypatch)


def load_fused(tmp_path: Path, encoder_file: Path, **changes: str) -> Any:
    folder = tmp_path / "fused"
    folder.mkdir()
    shutil.copy2(encoder_file, folder / "model.onnx")
    shutil.copy2(tokenizer_file(), folder / "tokenizer.json")
    write_catalogue(folder)
    Head(*head()).write(folder)
    parameters = {
        "engine": "onnxruntime",
        "intra_op_thread_count": "1",
        "max_length": "32",
        "length_multiple": "1",
        "max_queue_size": "0",
    }
    return load("fused", folder, parameters | changes)


def request(texts: list[str | bytes], history: tuple[bytes, ...] = (), k: int = 10) -> Request:
    ids = np.empty((len(texts), len(history)), dtype=np.object_)
    ids[:] = history
    encoded = np.empty((len(texts), 1), dtype=np.object_)
    encoded[:, 0] = [text.encode() if isinstance(text, str) else text for text in texts]
    return Request(instruction=encoded, history=ids, top_k=np.full((len(texts), 1), k, np.int32))


def answer_in_steps(tmp_path: Path, encoder_file: Path, requests: list[Request]) -> list[Any]:
    """What the ensemble does: tokenizer, encoder, head, top-k; each request by itself."""
    from serving.steps.encoder_engine import OnnxRuntimeEngine  # noqa: PLC0415 - as the server imports it

    for step in ("tokenizer", "topk"):
        (tmp_path / step).mkdir()
    shutil.copy2(tokenizer_file(), tmp_path / "tokenizer" / "tokenizer.json")
    write_catalogue(tmp_path / "topk")
    tokenizer = load("tokenizer", tmp_path / "tokenizer", {"length_buckets": "16,32", "max_queue_size": "0"})
    topk = load("topk", tmp_path / "topk", {})
    encoder = OnnxRuntimeEngine(encoder_file)
    weight, bias = head()
    answers = []
    for one in requests:
        [tokens] = tokenizer.execute([one])
        if tokens.error:
            answers.append(tokens)
            continue
        [vector] = encoder.run(["instruction_vector"], tokens.outputs)
        rest = {name: one.tensors[name] for name in ("history", "top_k") if name in one.tensors}
        ranked = Request(instruction_vector=vector, logits=vector @ weight.T + bias, **rest)
        answers.extend(topk.execute([ranked]))
    return answers


def mixed_requests() -> list[Request]:
    return [
        request([TEXTS[0]]),
        request([b"caf\xe9"]),
        request(TEXTS, (b"item-3", b"nobody", b"", b"item-9"), k=3),
        request([TEXTS[2]], k=100),
        request(["  "]),
        request([TEXTS[1]], k=0),
        request([TEXTS[3]], (b"item-1",) * 1_001),
        request([TEXTS[4]], (b"item-5",), k=1),
        request([TEXTS[2], TEXTS[1]], k=7),
        Request(instruction=np.array([[b"no history"]], dtype=np.object_)),
    ]


@pytest.mark.parametrize(("engine", "multiple"), [("onnxruntime", "1"), ("openvino", "16")])
def test_the_fused_step_answers_as_the_four_steps_do(triton, tmp_path, encoder_file, engine, multiple):
    expected = answer_in_steps(tmp_path, encoder_file, mixed_requests())
    counted_in_steps = sum(triton.counted)
    fused = load_fused(tmp_path, encoder_file, engine=engine, length_multiple=multiple)
    triton.counted.clear()
    found = fused.execute(mixed_requests())
    assert sum(triton.counted) == counted_in_steps == 5
    assert [response.error is None for response in found] == [True, False, True, True, *[False] * 3, True, True, False]
    for one, other in zip(found, expected, strict=True):
        if other.error:
            assert (one.error.code, one.error.message) == (other.error.code, other.error.message)
            continue
        assert list(one.outputs) == list(other.outputs)
        for name in ("item_id", "title", "label", "release"):
            assert one.outputs[name].tolist() == other.outputs[name].tolist(), name
        for name in ("score", "reason"):
            np.testing.assert_allclose(one.outputs[name], other.outputs[name], atol=1e-5)


def test_texts_of_all_lengths_run_in_few_runs_without_padding_to_buckets(triton, tmp_path, encoder_file):
    fused = load_fused(tmp_path, encoder_file)
    engine, shapes = fused.encoder._engine, []

    class Watched:
        outputs = engine.outputs

        def run(self, names: list[str], feed: dict[str, Any]) -> Any:
            shapes.append(feed["input_ids"].shape)
            return engine.run(names, feed)

    fused.encoder._engine = Watched()
    fused.execute([request([text]) for text in ["mug", TEXTS[2], "hat", TEXTS[2], "mug"]])
    assert sorted(shapes) == [(2, 32), (3, 3)]


def test_a_request_that_breaks_the_step_fails_alone(triton, tmp_path, encoder_file, monkeypatch):
    fused = load_fused(tmp_path, encoder_file)
    real = fused.head.logits

    def broken(vectors: Any) -> Any:
        logits = real(vectors)
        logits[[np.allclose(vector, poison, atol=1e-5) for vector in vectors]] = np.nan
        return logits

    poison = fused.encoder.encode([TEXTS[4]])[0]
    monkeypatch.setattr(fused.head, "logits", broken)
    first, bad, last = fused.execute([request([TEXTS[0]]), request([TEXTS[4]]), request([TEXTS[1]])])
    assert bad.error.code == "INTERNAL"
    assert TEXTS[4] not in bad.error.message
    assert first.outputs["item_id"].shape == last.outputs["item_id"].shape == (1, 10)


def test_an_engine_that_does_not_exist_is_refused(triton, tmp_path, encoder_file):
    with pytest.raises(ValueError, match=r"'tensorflow'.*onnxruntime, openvino"):
        load_fused(tmp_path, encoder_file, engine="tensorflow")


def test_a_head_whose_parts_do_not_fit_is_refused(tmp_path):
    Head(*head()).write(tmp_path)
    np.save(tmp_path / "head_bias.npy", np.zeros(LABELS + 1, np.float32))
    with pytest.raises(ValueError, match="export the release again"):
        Head.open(tmp_path)
