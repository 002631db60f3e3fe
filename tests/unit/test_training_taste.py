"""Taste: who follows what is new, learned as further dimensions of the history vectors."""

import numpy as np
import pytest
from history_helpers import ITEMS, RELEASED, catalogue, event, log_of

from training.dataset import Interaction
from training.event_log import DAY
from training.history import HistoryExample
from training.history_config import HistoryConfig
from training.priors import FEATURES, YEAR, RecencyModel, item_features
from training.taste import DIMENSIONS, fit_taste


def followers(people: int = 60) -> tuple[list[Interaction], list[HistoryExample]]:
    """Half of the people choose what came out of late, items 0 to 5, half what is old; each item is chosen alike."""
    events, examples = [], []
    for person in range(people):
        rows = np.random.default_rng(person).permutation(6)[:4] + 6 * (person % 2)
        events += [event(f"u{person}", int(row), person / 10 + step) for step, row in enumerate(rows[::-1])]
        history = tuple(map(int, rows[1:]))
        examples.append(HistoryExample(history, int(rows[0]), False, excluded=history, time=20 * DAY, events=4))
    return events, examples


def test_taste_ranks_new_items_for_those_who_choose_new_ones() -> None:
    events, examples = followers()
    released = np.array([0.0] * 6 + [-30 * YEAR] * 6)
    features = item_features(log_of(events), 20 * DAY, released)
    nothing = np.zeros((ITEMS, 2), np.float32)  # no behaviour to go by
    model = fit_taste([(features, nothing, examples)], RecencyModel(np.zeros(FEATURES)), seed=0)
    vectors = model.history_vectors(features, nothing)
    products = vectors @ vectors.T
    assert products[:6, :6].min() > products[:6, 6:].max()
    assert products[6:, 6:].min() > products[6:, :6].max()
    assert fit_taste([(features, nothing, examples)], RecencyModel(np.zeros(FEATURES)), 0).loadings.tolist() == (
        model.loadings.tolist()
    )


@pytest.mark.parametrize("head", [0.0, 0.5])
def test_the_gradient_of_taste_is_that_of_its_loss(head: float) -> None:
    from scipy.optimize import check_grad  # noqa: PLC0415

    from training.taste import _Histories  # noqa: PLC0415

    events, examples = followers(8)
    features = item_features(log_of(events[:20]), 20 * DAY, RELEASED)
    term = _Histories(features, catalogue().vectors, [*examples, HistoryExample((), 3, False)])
    term.standardise(np.full(FEATURES, 0.1), np.ones(FEATURES), 1.0)

    point = np.random.default_rng(0).normal(size=FEATURES * (1 + DIMENSIONS) + 1) / 3
    difference = check_grad(lambda p: term.loss(p, head)[0], lambda p: term.loss(p, head)[1], point, epsilon=1e-2)
    assert difference < 0.02 * np.linalg.norm(term.loss(point, head)[1])  # in float32


def test_nothing_to_learn_taste_from_gives_none() -> None:
    features = item_features(log_of([]), 0.0)
    nothing = np.zeros((ITEMS, 2), np.float32)
    model = fit_taste([(features, nothing, [HistoryExample((), 1, False)])], RecencyModel(np.zeros(FEATURES)), seed=0)
    assert not model.history_vectors(features, nothing).any()
    with pytest.raises(ValueError, match="taste needs"):
        HistoryConfig(taste=True)
