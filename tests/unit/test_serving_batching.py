"""One bad request among many harms no other: the batch helper alone, and the two Python steps with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import ROOT, Request, catalogue_of, install_triton, load_model_file
from test_serving_tokenization import tokenizer_file

from serving.steps.catalogue import ScoreWeights
from serving.steps.invalid_request import InvalidRequestError
from serving.steps.ranking import Ranker

PRIVATE = "Amaryllis"
WEIGHTS = ScoreWeights(alpha=1, beta=0.5, gamma=0.5, delta=0.1, history_decay=0.5)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_triton(monkeypatch)


class Doubler:
    """A step that doubles numbers and fails where a request's number says so."""

    def __init__(self, pb_utils: Any) -> None:
        self.pb_utils = pb_utils

    def read(self, request: Request) -> int:
        value = request.tensors["x"]
        if value == "invalid":
            raise InvalidRequestError("x must be a number")
        if value == "unreadable":
            raise KeyError(PRIVATE)
        return value if isinstance(value, int) else {"breaks": -1, "unwritable": -2}[value]

    def compute(self, values: list[int]) -> list[int]:
        if -1 in values:
            raise RuntimeError(f"cannot compute {PRIVATE}")
        return [2 * value for value in values]

    def write(self, result: int) -> list[Any]:
        if result == -4:
            raise ValueError(f"cannot write {PRIVATE}")
        return [self.pb_utils.Tensor("y", result)]

    def answer(self, values: list[Any]) -> list[Any]:
        from serving.steps.batching import answer_batch  # noqa: PLC0415 - holds the module installed above

        return answer_batch([Request(x=value) for value in values], self.read, self.compute, self.write)


def check(values: list[Any], responses: list[Any], logged: list[str]) -> None:
    assert len(responses) == len(values)
    for value, response in zip(values, responses, strict=True):
        if isinstance(value, int):
            assert response.error is None
            assert response.outputs == {"y": 2 * value}
        else:
            expected = ("INVALID_ARG", "x must be a number") if value == "invalid" else ("INTERNAL", "failed")
            assert response.error.code == expected[0]
            assert expected[1] in response.error.message
            assert PRIVATE not in response.error.message
    assert not any(PRIVATE in line for line in logged)
    assert len(logged) == sum(value in {"breaks", "unreadable", "unwritable"} for value in values)
    assert all("test_serving_batching.py:" in line for line in logged)  # where it broke, not what with


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["invalid", "unreadable", "breaks"])), max_size=8))
def test_every_request_gets_its_own_answer_in_order(triton, values):
    triton.logged.clear()
    check(values, Doubler(triton).answer(values), triton.logged)


@pytest.mark.parametrize("values", [["unwritable"], [1, "unwritable", 3], ["unwritable", "breaks", 5, "invalid"]])
def test_a_result_that_cannot_be_written_fails_its_request_alone(triton, values):
    check(values, Doubler(triton).answer(values), triton.logged)


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3, 4]])
def test_a_step_that_returns_too_few_or_many_results_still_answers_each_request(triton, results):
    """Whatever a step does wrong, a request without an answer would hang; and no answer may be another request's."""
    from serving.steps.batching import answer_batch  # noqa: PLC0415 - holds the module installed above

    def compute(values: list[int]) -> list[int]:
        return results if len(values) == 3 else [2 * values[0]]

    doubler = Doubler(triton)
    responses = answer_batch([Request(x=value) for value in (5, 6, 7)], doubler.read, compute, doubler.write)
    assert len(responses) == 3
    for value, response in zip((5, 6, 7), responses, strict=True):
        assert (response.error and response.error.code == "INTERNAL") or response.outputs == {"y": 2 * value}


def test_all_good_requests_are_computed_at_once(triton):
    from serving.steps.batching import answer_batch  # noqa: PLC0415 - holds the module installed above

    calls = []

    def compute(values: list[int]) -> list[int]:
        calls.append(list(values))
        return values

    doubler = Doubler(triton)
    answer_batch([Request(x=value) for value in (1, "invalid", 2, 3)], doubler.read, compute, doubler.write)
    assert calls == [[1, 2, 3]]
    calls.clear()
    answer_batch([Request(x="invalid")], doubler.read, compute, doubler.write)
    assert calls == []


def test_a_missing_input_is_the_callers_fault(triton):
    from serving.steps.batching import answer_batch, tensor  # noqa: PLC0415 - holds the module installed above

    doubler = Doubler(triton)
    [response] = answer_batch([Request()], lambda request: tensor(request, "x"), doubler.compute, doubler.write)
    assert (response.error.code, response.error.message) == ("INVALID_ARG", "input x is missing")


def bytes_rows(*values: bytes) -> Any:
    array = np.empty((len(values), 1), dtype=np.object_)
    array[:, 0] = values
    return array


@pytest.fixture
def tokenizer_step(triton: Any, tmp_path: Path) -> Any:
    module = load_model_file(ROOT / "model_repository" / "tokenizer" / "1" / "model.py", tmp_path / "tokenizer")
    shutil.copy2(tokenizer_file(), tmp_path / "tokenizer" / "tokenizer.json")
    step = module.TritonPythonModel()
    parameters = {"length_buckets": {"string_value": "8,16,32"}, "max_queue_size": {"string_value": "0"}}
    step.initialize(
        {"model_name": "shop_tokenizer", "model_version": "7", "model_config": json.dumps({"parameters": parameters})}
    )
    return step


def test_tokenizer_step_pads_each_request_by_itself(tokenizer_step):
    texts = [[b"a blue shirt"], [b"shirt", b"a red shirt with long sleeves for the office in winter"], [b"hat"]]
    responses = tokenizer_step.execute([Request(instruction=bytes_rows(*rows)) for rows in texts])
    assert [response.outputs["input_ids"].shape for response in responses] == [(1, 8), (2, 16), (1, 8)]
    for rows, response in zip(texts, responses, strict=True):
        [alone] = tokenizer_step.execute([Request(instruction=bytes_rows(*rows))])
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(alone.outputs[name], response.outputs[name])


def test_tokenizer_step_refuses_bad_texts_alone(tokenizer_step, triton):
    values = [b"a hat", b"", b"\xff", b"x" * 20_000_000, b"a hat"]
    responses = tokenizer_step.execute([Request(instruction=bytes_rows(value)) for value in values])
    assert [response.error and response.error.code for response in responses] == [None, *["INVALID_ARG"] * 3, None]
    np.testing.assert_array_equal(responses[0].outputs["input_ids"], responses[4].outputs["input_ids"])
    [mixed] = tokenizer_step.execute([Request(instruction=bytes_rows(b"a hat", b" "))])
    assert "row 1" in mixed.error.message
    assert triton.logged == []


@pytest.fixture
def topk_step(triton: Any, tmp_path: Path) -> Any:
    module = load_model_file(ROOT / "model_repository" / "topk" / "1" / "model.py", tmp_path / "topk")
    catalogue = catalogue_of(np.eye(6, 4), [0, 1] * 3, range(6), WEIGHTS, labels=2, release="7")
    catalogue.write(tmp_path / "topk")
    step = module.TritonPythonModel()
    step.initialize({"model_name": "shop_topk", "model_version": "7"})
    return step


def query(k: int = 3, history: tuple[bytes, ...] = (), rows: int = 1, fill: float = 0.5) -> Request:
    ids = np.empty((rows, len(history)), dtype=np.object_)
    ids[:] = history
    return Request(
        instruction_vector=np.full((rows, 4), fill, np.float32),
        logits=np.tile(np.array([0.0, 1.0], np.float32), (rows, 1)),
        history=ids,
        top_k=np.full((rows, 1), k, np.int32),
    )


def test_topk_step_answers_the_contract(topk_step, triton):
    catalogue = catalogue_of(np.eye(6, 4), [0, 1] * 3, range(6), WEIGHTS, labels=2)
    requests = [query(3, (b"item-1", b"nobody")), query(100, rows=2), query(1, (b"", b"item-0"))]
    responses = topk_step.execute(requests)
    for request, response, k in zip(requests, responses, (3, 6, 1), strict=True):
        rows = len(request.tensors["top_k"])
        ranker = Ranker(catalogue)
        history = ranker.history_vectors([list(row) for row in request.tensors["history"]])
        best = ranker.rank(request.tensors["instruction_vector"], request.tensors["logits"], history, k)
        outputs = response.outputs
        assert outputs["item_id"].tolist() == [[f"item-{item}".encode() for item in row] for row in best.items]
        assert outputs["title"].tolist() == [[f"title of item-{item}".encode() for item in row] for row in best.items]
        assert outputs["label"].tolist() == [[f"label-{item % 2}".encode() for item in row] for row in best.items]
        np.testing.assert_allclose(outputs["score"], best.score, atol=1e-5)
        np.testing.assert_allclose(outputs["reason"], best.reason, atol=1e-5)
        assert outputs["reason"].shape == (rows, k, 4)
        assert outputs["release"].tolist() == [[b"7"]] * rows
        for name in ("score", "reason"):
            assert outputs[name].dtype == np.float32
            assert outputs[name].flags.c_contiguous
    assert sum(triton.counted) == 1


def test_topk_step_refuses_bad_requests_alone(topk_step, triton):
    requests = [query(3), query(0), query(101), query(2, (PRIVATE.encode(),) * 1_001), query(4)]
    responses = topk_step.execute(requests)
    assert [response.error and response.error.code for response in responses] == [None, *["INVALID_ARG"] * 3, None]
    assert [responses[0].outputs["item_id"].shape, responses[4].outputs["item_id"].shape] == [(1, 3), (1, 4)]
    assert not any(PRIVATE in response.error.message for response in responses[1:4])


def test_topk_step_survives_a_vector_that_is_not_a_number(topk_step, triton):
    """An answer with such scores would look like any other; the neighbours' are as good as alone."""
    good, bad, after = topk_step.execute([query(3, (b"nobody",)), query(3, fill=np.nan), query(2)])
    assert bad.error is not None
    [alone] = topk_step.execute([query(3)])
    np.testing.assert_array_equal(good.outputs["item_id"], alone.outputs["item_id"])
    assert after.outputs["item_id"].shape == (1, 2)


def test_unknown_items_are_counted_once_also_when_a_neighbour_fails(topk_step, triton):
    triton.counted.clear()
    topk_step.execute([query(3, (b"nobody", b"no one")), query(3, fill=np.nan)])
    assert sum(triton.counted) == 2
