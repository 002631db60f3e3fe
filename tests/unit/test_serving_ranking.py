"""Ranking against a plain float64 implementation of DESIGN's formula, and against training's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import catalogue_of

from serving.steps.catalogue import ScoreWeights
from serving.steps.ranking import Ranker, log_softmax
from training import score as training_score

WEIGHTS = ScoreWeights(alpha=2.0, beta=0.3, gamma=0.7, delta=0.05, history_decay=0.8)
weight = st.floats(0, 3, width=32)
score_weights = st.builds(
    ScoreWeights, alpha=weight, beta=weight, gamma=weight, delta=weight, history_decay=st.floats(0.25, 1, width=32)
)


def unit(generator: np.random.Generator, rows: int, width: int) -> Any:
    vectors = generator.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Case:
    """A random catalogue and random requests."""

    def __init__(self, seed: int, items: int, width: int, labels: int, rows: int, weights: ScoreWeights) -> None:
        generator = np.random.default_rng(seed)
        vectors = unit(generator, items, width)
        label_index, prior = generator.integers(0, labels, items), generator.uniform(0, 5, items)
        self.catalogue = catalogue_of(vectors, label_index, prior, weights, labels=labels)
        self.h = unit(generator, rows, width)
        self.u = generator.normal(scale=5, size=(rows, labels)).astype(np.float32)
        lengths = generator.integers(0, 8, rows)
        names = [*(f"item-{row}".encode() for row in range(items)), b"unknown", b"", b"\xff"]
        self.histories = [[names[i] for i in generator.integers(0, len(names), length)] for length in lengths]
        self.ranker = Ranker(self.catalogue)

    def rank(self, k: int, rows: slice = slice(None)) -> Any:
        history = self.ranker.history_vectors(self.histories[rows])
        return self.ranker.rank(self.h[rows], self.u[rows], history, k)


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 70),
    width=st.integers(1, 24),
    labels=st.integers(1, 6),
    rows=st.integers(1, 5),
    weights=score_weights,
)


def reference_history(case: Case, history: list[bytes]) -> Any:
    row_of = {f"item-{row}".encode(): row for row in range(len(case.catalogue.item_vectors))}
    total, weights = np.zeros(case.h.shape[1]), 0.0
    for j, row in enumerate(row_of[one] for one in history if one in row_of):
        total += case.catalogue.score_weights.history_decay**j * case.catalogue.item_vectors[row].astype(np.float64)
        weights += case.catalogue.score_weights.history_decay**j
    return total / weights if weights else total


def reference_terms(case: Case, row: int) -> Any:
    """The four terms of every item, float64 [N, 4], as DESIGN writes them down."""
    weights = case.catalogue.score_weights
    u = case.u[row].astype(np.float64)
    log_probability = u - u.max() - np.log(np.exp(u - u.max()).sum())
    history = reference_history(case, case.histories[row])
    h = case.h[row].astype(np.float64)
    return np.array(
        [
            [
                weights.alpha * float(h @ vector),
                weights.beta * float(log_probability[label]),
                weights.gamma * float(history @ vector),
                weights.delta * float(prior),
            ]
            for vector, label, prior in zip(
                case.catalogue.item_vectors.astype(np.float64),
                case.catalogue.label_index,
                case.catalogue.prior,
                strict=True,
            )
        ]
    )


@given(cases, st.integers(1, 100))
def test_equals_the_plain_formula(case, k):
    best = case.rank(k)
    expected_k = min(k, len(case.catalogue.item_vectors))
    assert best.items.shape == best.score.shape == best.reason.shape[:2] == (len(case.h), expected_k)
    assert best.score.dtype == best.reason.dtype == np.float32
    for row in range(len(case.h)):
        terms = reference_terms(case, row)
        scores = terms.sum(axis=1)
        chosen = best.items[row]
        assert len(set(chosen.tolist())) == expected_k
        np.testing.assert_allclose(scores[chosen], np.sort(scores)[::-1][:expected_k], atol=1e-5)
        np.testing.assert_allclose(best.reason[row], terms[chosen], atol=1e-5)
        np.testing.assert_allclose(best.score[row], scores[chosen], atol=1e-5)


@given(cases, st.integers(1, 100))
def test_reasons_add_up_and_scores_never_rise(case, k):
    best = case.rank(k)
    np.testing.assert_allclose(best.reason.sum(axis=-1), best.score, atol=1e-5)
    assert (np.diff(best.score, axis=1) <= 0).all()


@given(cases, st.integers(1, 60), st.data())
def test_fewer_items_are_a_prefix_of_more(case, k, data):
    fewer = data.draw(st.integers(1, k))
    many, few = case.rank(k), case.rank(fewer)
    part = many.part(0, len(case.h), fewer)
    np.testing.assert_array_equal(few.items, part.items)
    np.testing.assert_array_equal(few.score, part.score)
    np.testing.assert_array_equal(few.reason, part.reason)


@given(cases, st.integers(1, 20))
def test_answer_does_not_depend_on_the_rows_beside_it(case, k):
    together = case.rank(k)
    for row in range(len(case.h)):
        alone = case.rank(k, slice(row, row + 1))
        np.testing.assert_allclose(alone.score[0], together.score[row], atol=1e-5)
        scores = reference_terms(case, row).sum(axis=1)
        np.testing.assert_allclose(scores[alone.items[0]], scores[together.items[row]], atol=1e-5)


@given(cases, st.integers(1, 70))
def test_agrees_with_training(case, k):
    """The same weights give the same terms and the same order, but for scores that are nearer than float32 can tell."""
    weights = training_score.ScoreWeights(**vars(case.catalogue.score_weights))
    side = training_score.CatalogueSide(
        case.catalogue.item_vectors, case.catalogue.label_index.tolist(), case.catalogue.prior.tolist()
    )
    row_of = {f"item-{row}".encode(): row for row in range(len(side))}
    known = [[row_of[one] for one in history if one in row_of] for history in case.histories]
    history = np.stack([side.history_vector(rows, weights.history_decay) for rows in known])
    served = case.ranker.history_vectors(case.histories)
    unknown = case.ranker.unknown_items(case.histories)
    np.testing.assert_allclose(served, history, atol=1e-6)
    assert unknown == sum(one not in (*row_of, b"") for history in case.histories for one in history)

    features = side.features(case.h, training_score.log_softmax(case.u), history)
    scores = np.tensordot(weights.terms(), features, axes=1)
    best = case.rank(k)
    for row, values in enumerate(scores):
        order = np.argsort(-values, kind="stable")[: best.items.shape[1]]
        differs = order != best.items[row]
        np.testing.assert_allclose(values[order][differs], values[best.items[row]][differs], atol=1e-5)
        weighted = weights.terms()[:, None] * features[:, row, best.items[row]]
        np.testing.assert_allclose(best.reason[row], weighted.T, atol=1e-5)


@st.composite
def exact_cases(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    """Small whole numbers, so that float32 is exact and equal scores are truly equal."""
    items, width = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = generator.integers(-1, 2, size=(items, width))
    prior = generator.integers(0, 2, size=items)
    return vectors, prior, generator.integers(-1, 2, size=(3, width)), draw(st.integers(1, 50))


@given(exact_cases())
def test_equal_scores_keep_the_catalogue_order(case):
    vectors, prior, h, k = case
    weights = ScoreWeights(alpha=1, beta=1, gamma=0, delta=2, history_decay=1)
    ranker = Ranker(catalogue_of(vectors, [0] * len(vectors), prior, weights, labels=2))
    best = ranker.rank(h.astype(np.float32), np.zeros((3, 2), np.float32), np.zeros_like(h, dtype=np.float32), k)
    for row in range(3):
        expected = np.argsort(-(vectors @ h[row] + 2 * prior), kind="stable")[:k]
        np.testing.assert_array_equal(best.items[row], expected)


@pytest.mark.parametrize("width", [8, 32, 384])
@pytest.mark.parametrize("items", [7, 100, 1001])
@pytest.mark.parametrize("rows", [1, 2, 32])
def test_identical_items_keep_the_catalogue_order(items, width, rows):
    """Catalogues hold the same text twice; where a vector product puts an item must not decide which comes first."""
    generator = np.random.default_rng(0)
    vectors = np.tile(unit(generator, 1, width), (items, 1))
    ranker = Ranker(catalogue_of(vectors, [0] * items, [1] * items, WEIGHTS, labels=2))
    h, history = unit(generator, rows, width), unit(generator, rows, width)
    best = ranker.rank(h, np.zeros((rows, 2), np.float32), history, 20)
    for row in range(rows):
        np.testing.assert_array_equal(best.items[row], np.arange(min(20, items)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 45))
def test_of_two_identical_items_the_earlier_comes_first(seed, different):
    generator = np.random.default_rng(seed)
    source = np.concatenate([np.arange(different), generator.permutation(different)])  # every item twice
    vectors = unit(generator, different, 48)[source]
    ranker = Ranker(catalogue_of(vectors, [0] * len(source), [0] * len(source), WEIGHTS, labels=1))
    h = unit(generator, 1, 48)
    best = ranker.rank(h, np.zeros((1, 1), np.float32), np.zeros_like(h), 100).items[0].tolist()
    for original in range(different):
        assert [item for item in best if source[item] == original] == np.flatnonzero(source == original).tolist()


def test_history_fades_by_the_decay_from_the_newest():
    weights = ScoreWeights(alpha=0, beta=0, gamma=1, delta=0, history_decay=0.5)
    ranker = Ranker(catalogue_of(np.eye(3), [0, 0, 0], [0, 0, 0], weights, labels=1))
    histories = [[b"item-2", b"item-0"], [b"nobody", b"", b"item-1"], [], [b"", b""], [b"item-0"] * 3]
    vectors = ranker.history_vectors(histories)
    np.testing.assert_allclose(vectors, [[1 / 3, 0, 2 / 3], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]], atol=1e-7)
    assert vectors.dtype == np.float32
    assert ranker.unknown_items(histories) == 1
    best = ranker.rank(np.zeros((1, 3), np.float32), np.zeros((1, 1), np.float32), vectors[:1], 3)
    assert best.items[0].tolist() == [2, 0, 1]


@given(cases, st.lists(st.sampled_from([b"", b"nobody", b"\xff\xfe", b"Item-0"]), max_size=6))
def test_padding_and_unknown_ids_change_nothing(case, noise):
    clean = [[one for one in history if one.startswith(b"item-")] for history in case.histories]
    noisy = [[*noise, *history] for history in clean]
    np.testing.assert_array_equal(case.ranker.history_vectors(noisy), case.ranker.history_vectors(clean))
    assert case.ranker.unknown_items(clean) == 0
    assert case.ranker.unknown_items(noisy) == len(clean) * sum(one != b"" for one in noise)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8))
def test_log_softmax_is_safe_for_large_logits(logits):
    logs = log_softmax(np.array([logits], dtype=np.float32))
    assert np.isfinite(logs).all()
    assert np.exp(logs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("decay", [0.25, 0.5])
def test_the_longest_history_stays_finite(decay):
    weights = ScoreWeights(alpha=1, beta=1, gamma=1, delta=1, history_decay=decay)
    ranker = Ranker(catalogue_of(np.eye(2), [0, 0], [0, 0], weights, labels=1))
    vectors = ranker.history_vectors([[b"item-0"] * 1000])
    np.testing.assert_allclose(vectors, [[1, 0]], atol=1e-6)
