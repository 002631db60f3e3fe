"""A release whose histories have vectors of their own, or are left out of the answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import catalogue_of

from serving.steps.catalogue import Catalogue, ScoreWeights
from serving.steps.ranking import MAX_TOP_K, Ranker
from training.dataset import Interaction
from training.history import history_examples
from training.score import CatalogueSide

ITEMS, WIDTH, DEPTH = 150, 6, 4
WEIGHTS = ScoreWeights(alpha=1.0, beta=0.5, gamma=2.0, delta=0.25, history_decay=0.5)


def catalogue(items: int = ITEMS, **changes: Any) -> Catalogue:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(items, WIDTH)).astype(np.float32)
    plain = catalogue_of(vectors, np.zeros(items, np.int32), generator.random(items), WEIGHTS, labels=2)
    behaviour = generator.normal(size=(items, DEPTH)).astype(np.float32)
    return dataclasses.replace(plain, **{"history_vectors": behaviour, **changes})


def rank(made: Catalogue, histories: list[list[bytes]], k: int = 10) -> Any:
    ranker = Ranker(made)
    generator = np.random.default_rng(1)
    h = generator.normal(size=(len(histories), WIDTH)).astype(np.float32)
    u = generator.normal(size=(len(histories), 2)).astype(np.float32)
    return ranker.rank(h, u, ranker.history_vectors(histories), k, ranker.excluded_rows(histories))


def test_the_history_term_is_that_of_training_over_vectors_of_another_width() -> None:
    made = catalogue()
    best = rank(made, [[b"item-3", b"no such item", b"item-5", b""], []])
    side = CatalogueSide(made.item_vectors, made.label_index.astype(np.int64), made.prior, made.history_vectors)
    expected = WEIGHTS.gamma * (side.history_vectors @ side.history_vector([3, 5], 0.5))
    np.testing.assert_allclose(best.reason[0, :, 2], expected[best.items[0]], rtol=1e-4, atol=1e-5)
    assert not best.reason[1, :, 2].any()
    np.testing.assert_allclose(best.score, best.reason.sum(axis=-1), rtol=1e-6)
    assert (np.diff(best.score, axis=1) <= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.booleans())
def test_the_history_vector_is_that_of_the_history_that_training_makes_of_the_same_events(
    chosen: list[int], longest: int, exclude: bool
) -> None:
    """Events in the order of time; the last one, of an item that is new, is what training asks for."""
    rows = {f"item-{row}": row for row in range(ITEMS)}
    events = [Interaction("u", f"item-{row}", 1.0, float(day)) for day, row in enumerate([*chosen, ITEMS - 1])]
    (example,) = history_examples(events, rows, longest, exclude_seen=exclude)
    made = catalogue(exclude_history=exclude, max_history=longest)
    sent = [f"item-{row}".encode() for row in reversed(chosen)]
    side = CatalogueSide(made.item_vectors, made.label_index.astype(np.int64), made.prior, made.history_vectors)
    ranker = Ranker(made)
    found = ranker.history_vectors([[b"no such item", *sent, b""]])[0]
    np.testing.assert_allclose(found, side.history_vector(example.history, 0.5), rtol=1e-5, atol=1e-6)
    assert ranker.excluded_rows([sent])[0] == sorted(example.excluded)


def test_the_best_items_are_the_best_of_all() -> None:
    made = catalogue()
    everything = rank(made, [[b"item-3"]], k=ITEMS)
    best = rank(made, [[b"item-3"]], k=7)
    assert best.items[0].tolist() == everything.items[0, :7].tolist()
    assert sorted(everything.items[0].tolist()) == list(range(ITEMS))


def test_the_history_is_left_out_of_the_answer_where_the_release_says_so() -> None:
    unseen = rank(catalogue(), [[]], k=5).items[0].tolist()
    history = [f"item-{row}".encode() for row in unseen] + [b"", b"no such item", f"item-{unseen[0]}".encode()]
    kept = rank(catalogue(), [history, []], k=MAX_TOP_K)
    left_out = rank(catalogue(exclude_history=True), [history, []], k=MAX_TOP_K)
    assert set(unseen) & set(kept.items[0].tolist())
    assert not set(unseen) & set(left_out.items[0].tolist())
    assert np.isfinite(left_out.score).all()
    assert left_out.items[1].tolist() == kept.items[1].tolist()  # a neighbour without a history


def test_answers_are_never_shorter_for_a_history() -> None:
    few = catalogue(items=MAX_TOP_K + 1, exclude_history=True)
    two = [b"item-0", b"item-1"]
    best = rank(few, [two[:1], two], k=MAX_TOP_K)
    assert 0 not in best.items[0]
    assert best.items.shape == (2, MAX_TOP_K)
    assert Ranker(few).excluded_rows([two]) == [[]]  # 99 items would be left


def test_a_catalogue_comes_back_with_what_its_histories_need(tmp_path: Path) -> None:
    made = catalogue(exclude_history=True, max_history=20)
    made.write(tmp_path)
    opened = Catalogue.open(tmp_path)
    assert opened.history_vectors is not None
    np.testing.assert_array_equal(opened.history_vectors, made.history_vectors)
    assert (opened.exclude_history, opened.max_history) == (True, 20)
    np.save(tmp_path / "history_vectors.npy", np.zeros((ITEMS - 1, DEPTH), np.float32))
    with pytest.raises(ValueError, match="history_vectors"):
        Catalogue.open(tmp_path)


def test_a_release_of_before_behaviour_vectors_opens_and_ranks_as_it_did(tmp_path: Path) -> None:
    catalogue(history_vectors=None).write(tmp_path)
    header = json.loads((tmp_path / "catalogue.json").read_text())
    del header["exclude_history"], header["max_history"]
    (tmp_path / "catalogue.json").write_text(json.dumps(header))
    opened = Catalogue.open(tmp_path)
    assert opened.history_vectors is None
    assert opened.history_side is opened.item_vectors
    assert opened.max_history is None
    assert Ranker(opened).excluded_rows([[b"item-1"]]) == [[]]
    assert rank(opened, [[b"item-1"]]).reason[0, :, 2].any()
