"""The scan by label against a scan of everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import catalogue_of

from serving.steps import grouped_scan, narrow_vectors
from serving.steps.catalogue import ScoreWeights
from serving.steps.grouped_scan import SMALL_GROUP, GroupedScan
from serving.steps.ranking import Ranker, log_softmax


class Groups:
    """Random members in groups of every size, some of them empty, and random rows that ask for them."""

    def __init__(self, seed: int, parts: int, rows: int, spread: float) -> None:
        self.random = generator = np.random.default_rng(seed)
        sizes = generator.choice([0, 1, 3, 20, SMALL_GROUP, 150], size=generator.integers(1, 9))
        sizes[generator.integers(len(sizes))] = 20
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.group_of = np.repeat(np.arange(len(sizes)), sizes)
        widths = generator.integers(1, 7, parts)
        self.parts = [generator.normal(size=(sizes.sum(), width)).astype(np.float32) for width in widths]
        self.queries = [generator.normal(size=(rows, width)).astype(np.float32) for width in widths]
        self.own = generator.choice([0.0, 1.0], sizes.sum()).astype(np.float32) * generator.integers(0, 2)
        self.term = (generator.normal(size=(rows, len(sizes))) * spread).astype(np.float32)

    def scores(self) -> Any:
        total = self.term[:, self.group_of].astype(np.float64) + self.own
        return total + sum(
            query @ part.T.astype(np.float64) for query, part in zip(self.queries, self.parts, strict=True)
        )


groups = st.builds(
    Groups,
    seed=st.integers(0, 2**32 - 1),
    parts=st.integers(1, 2),
    rows=st.integers(1, 4),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e5]),
)


def scan_of(case, monkeypatch, *, narrow):
    """A scan that looks at one dimension first, then at one more, or at all at once."""
    with monkeypatch.context() as patch:
        patch.setattr(narrow_vectors, "WIDTHS", (1, 1))
        patch.setattr(grouped_scan, "WIDTHS", (1, 1))
        patch.setattr(grouped_scan, "NARROW_FROM", 1)
        made = GroupedScan(case.parts, case.own, case.starts, narrow=narrow)
    assert bool(made._narrow) == (narrow and all(part.shape[1] >= 4 for part in case.parts))
    return made


@pytest.mark.parametrize("narrow", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups, st.data())
def test_none_of_the_best_is_missed_and_scores_are_right(monkeypatch, narrow, case, data):
    members = len(case.group_of)
    need = data.draw(st.integers(1, members))
    rows = len(case.term)
    excluded = [case.random.permutation(members)[: case.random.integers(0, members - need + 1)] for _ in range(rows)]
    found = scan_of(case, monkeypatch, narrow=narrow).best(case.queries, case.term, need, excluded)
    for row, (expected, (chosen, scores)) in enumerate(zip(case.scores(), found, strict=True)):
        tolerance = 1e-5 * max(1, np.abs(expected[chosen]).max())
        np.testing.assert_allclose(scores, expected[chosen], atol=tolerance)
        expected[excluded[row]] = -np.inf
        assert len(set(chosen.tolist())) == len(chosen) >= need
        assert np.isfinite(expected[chosen]).all()
        np.testing.assert_allclose(
            np.sort(expected[chosen])[::-1][:need], np.sort(expected)[::-1][:need], atol=tolerance
        )
        assert set(np.flatnonzero(expected > np.sort(expected)[-need] + tolerance)) <= set(chosen.tolist())


def test_a_large_catalogue_is_looked_at_through_a_few_dimensions():
    """The answers are those of a scan of everything, and most vectors were not read."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(6, 384)).astype(np.float32)
    label_index = np.repeat(np.arange(6), 1_000)
    basis = generator.normal(size=(20, 384)).astype(np.float32)
    vectors = centres[label_index] + generator.normal(size=(6_000, 20)).astype(np.float32) @ basis / 8
    vectors += generator.normal(size=vectors.shape).astype(np.float32) / 200
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = catalogue_of(vectors, label_index, np.zeros(6_000), ScoreWeights(20, 1, 0, 0, 1), labels=6)
    ranker = Ranker(made)
    h, u = vectors[::500] + centres[label_index[::500]] / 40, generator.normal(size=(12, 6)).astype(np.float32) * 5
    best = ranker.rank(h, u, np.zeros((12, 384), np.float32), 10)
    scores = 20 * h @ vectors.T + log_softmax(u)[:, label_index]
    np.testing.assert_allclose(best.score, np.sort(scores, axis=1)[:, :-11:-1], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, best.items, axis=1), best.score, rtol=1e-5)
    scored = []
    scan = ranker._finder._scan
    real = scan._scores
    scan._scores = lambda queries, askers, members, terms: (
        scored.append(np.size(members)) or real(queries, askers, members, terms)
    )
    again = ranker.rank(h, u, np.zeros((12, 384), np.float32), 10)
    np.testing.assert_array_equal(again.items, best.items)
    assert sum(scored) < 12 * 300  # a label holds 1,000


def test_groups_that_cannot_hold_the_best_are_not_read():
    """Their vectors may even be spoilt after the groups were measured."""
    vectors = np.eye(300, 4, dtype=np.float32) + 0.1
    starts = np.array([0, 100, 200, 300])
    scan = GroupedScan([vectors], np.zeros(300, np.float32), starts)
    query, term = np.ones((2, 4), np.float32), np.array([[0, -100, -100], [-100, -100, 0]], np.float32)
    before = scan.best([query], term, 10)
    vectors[100:200] = np.nan
    for (one, scores), (other, same) in zip(before, scan.best([query], term, 10), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(scores, same)


@pytest.mark.parametrize("spoilt", ["vector", "own"])
def test_members_that_are_not_finite_are_refused(spoilt):
    vectors, own = np.ones((3, 2), np.float32), np.zeros(3, np.float32)
    (vectors if spoilt == "vector" else own)[1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        GroupedScan([vectors], own, np.array([0, 3]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "term"])
def test_rows_that_are_not_finite_are_an_error(value, where):
    scan = GroupedScan([np.ones((3, 2), np.float32)], np.zeros(3, np.float32), np.array([0, 1, 3]))
    query, term = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    (query if where == "query" else term)[0, 1] = value
    with pytest.raises(FloatingPointError):
        scan.best([query], term, 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.floats(0, 4), st.booleans())
def test_the_order_of_the_rows_changes_no_answer(seed, k, beta, twins):
    """A release's rows lie by label; between equal scores the dataset's order still decides."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(160, 8)).astype(np.float32)
    if twins:
        vectors[80:] = vectors[:80]
    labels = generator.integers(0, 12, 160) // 3 * 2  # the odd ones without items
    weights = ScoreWeights(alpha=1, beta=beta, gamma=1, delta=0, history_decay=1)
    plain = catalogue_of(vectors, labels, np.zeros(160), weights, labels=8)
    sorted_ = plain.reordered(np.argsort(labels, kind="stable"))
    h, u = (generator.normal(size=(3, width)).astype(np.float32) for width in (8, 8))
    histories = [[], [b"item-5", b"item-90"], [b"nobody"]]
    answers = []
    for catalogue in (plain, sorted_):
        ranker = Ranker(catalogue)
        best = ranker.rank(h, 4 * u, ranker.history_vectors(histories), k)
        answers.append((catalogue.item_ids.take(best.items), best.score, best.reason))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)
    everything = weights.alpha * h @ vectors.T + beta * log_softmax(4 * u)[:, labels]
    best = np.sort(everything[0])[::-1][:k]
    np.testing.assert_allclose(answers[0][1][0], best, atol=1e-4)


def test_all_scores_equal_gives_the_first_items_of_the_dataset():
    weights = ScoreWeights(alpha=1, beta=0, gamma=0, delta=0, history_decay=1)
    plain = catalogue_of(np.zeros((500, 4)), np.arange(500)[::-1] % 7, np.zeros(500), weights, labels=9)
    catalogue = plain.reordered(np.argsort(plain.label_index, kind="stable"))
    best = Ranker(catalogue).rank(
        np.zeros((2, 4), np.float32), np.zeros((2, 9), np.float32), np.zeros((2, 4), np.float32), 100
    )
    for row in range(2):
        assert catalogue.item_ids.take(best.items[row]).tolist() == [f"item-{n}".encode() for n in range(100)]
