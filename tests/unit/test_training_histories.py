"""Histories: priors and behaviour vectors learned from events in time."""

import numpy as np
import pytest
from history_helpers import ITEMS, RELEASED, ROWS, catalogue, event, log_of, shop
from hypothesis import given, settings
from hypothesis import strategies as st

from training.baselines import ItemNeighbours, popularity
from training.behaviour import behaviour_vectors
from training.dataset import Interaction
from training.event_log import DAY
from training.history import HistoryExample, history_examples
from training.history_config import HistoryConfig
from training.history_evaluation import leave_last_out
from training.metrics import ranking_metrics
from training.priors import FEATURES, YEAR, Choices, RecencyModel, fit_recency, item_features
from training.ranking import RankingExamples, fit_score_weights
from training.ranking_examples import without_instructions
from training.score import CatalogueSide, ScoreWeights
from training.timeline import Timeline

# --- events ---------------------------------------------------------------------------------------------------------


def test_the_log_is_in_time_order_whatever_the_files_and_leaves_rejections_out() -> None:
    log = log_of([event("b", 2, 3), event("a", 1, 1), event("a", 3, 2, value=0), event("a", 0, 3)])
    assert log.items.tolist() == [1, 2, 0]
    assert [log.person_ids[person] for person in log.people] == ["a", "b", "a"]
    assert log.before(3 * DAY).items.tolist() == [1]
    assert log.before(log.now).items.tolist() == [1, 2, 0]
    assert log.counts(1 * DAY, 3 * DAY).tolist() == [0, 1] + [0] * 10


def test_a_refresh_is_never_after_the_event() -> None:
    log = log_of([event("a", 0, 1), event("a", 1, 30)])
    assert log.last_refresh(1 * DAY, 7) == 1 * DAY
    assert log.last_refresh(7.9 * DAY, 7) == 1 * DAY
    assert log.last_refresh(8 * DAY, 7) == 8 * DAY


def test_an_empty_table_teaches_nothing_and_breaks_nothing() -> None:
    log = log_of([])
    configured = HistoryConfig(prior="recency", vectors="behaviour", dimensions=4)
    timeline = Timeline(log, catalogue(), configured)
    state = timeline.state(log.now, timeline.learn([], seed=0))
    assert state.priors.tolist() == [0] * ITEMS
    assert state.history_vectors.shape == (ITEMS, 4)
    assert not state.history_vectors.any()
    assert leave_last_out(timeline, [], lambda _: [], seed=0)["people_measured"] == 0


# --- examples -------------------------------------------------------------------------------------------------------


def test_events_of_the_same_moment_do_not_know_of_each_other() -> None:
    basket = [event("u", 1, 1), event("u", 2, 5), event("u", 3, 5), event("u", 4, 5)]
    (example,) = history_examples(basket, ROWS, 20)
    (other,) = history_examples(basket[::-1], ROWS, 20)
    assert example == other  # the file's order within a basket means nothing
    assert example.history == (1,)
    assert example.target in (2, 3, 4)


def test_a_person_of_one_event_is_no_example_and_one_of_one_moment_has_no_history() -> None:
    assert history_examples([event("u", 1, 1)], ROWS, 20) == []
    (example,) = history_examples([event("u", 1, 1), event("u", 2, 1)], ROWS, 20)
    assert (example.history, example.events) == ((), 2)


def test_where_seen_items_are_excluded_the_target_is_the_last_new_item() -> None:
    events = [event("u", row, day) for day, row in enumerate((1, 2, 1, 3, 2, 1))]
    (repeats,) = history_examples(events, ROWS, 20)
    assert (repeats.history, repeats.target, repeats.excluded) == ((2, 3, 1, 2, 1), 1, ())
    (new,) = history_examples(events, ROWS, 1, exclude_seen=True)
    assert (new.target, new.history) == (3, (1,))
    assert sorted(new.excluded) == [1, 2]  # all of them, not only the newest that count as history
    assert new.time == 3 * DAY


# --- priors ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, ITEMS - 1), st.integers(0, 30)), min_size=1, max_size=40),
    st.floats(0, 31),
)
def test_nothing_learned_at_a_time_depends_on_what_came_later(events: list[tuple[int, int, int]], day: float) -> None:
    every = [event(f"u{user}", row, when) for user, row, when in events]
    past = [one for one in every if one.timestamp < day * DAY]
    full, cut = log_of(every), log_of(past)
    seen, known = item_features(full, day * DAY, RELEASED), item_features(cut, day * DAY, RELEASED)
    np.testing.assert_array_equal(seen.columns, known.columns)
    np.testing.assert_allclose(seen.values, known.values)
    np.testing.assert_array_equal(popularity(full, day * DAY, 3), popularity(cut, day * DAY, 3))
    assert np.isfinite(seen.values).all()
    text = catalogue().vectors
    made, again = (behaviour_vectors(log, day * DAY, text, HistoryConfig(dimensions=3)) for log in (full, cut))
    np.testing.assert_allclose(made @ made.T, again @ again.T, atol=1e-4)


def test_the_blend_finds_that_recent_items_are_chosen() -> None:
    log = log_of([event(f"u{n}", 0, 1) for n in range(20)] + [event(f"v{n}", 1, 27 + n / 10) for n in range(10)])
    features = item_features(log, 29 * DAY)
    model = fit_recency([(features, [HistoryExample((), 1, held_out=False)] * 30)], seed=0)
    priors = model.priors(features)
    assert priors[1] > priors[0] >= 0
    assert priors[2:].tolist() == [0] * 10  # items without an event


def test_the_blend_without_anything_to_learn_from_is_zero() -> None:
    features = item_features(log_of([]), 0.0)
    model = fit_recency([(features, [HistoryExample((), 1, held_out=False)])], seed=0)
    assert model.weights.tolist() == [0] * FEATURES
    assert not model.priors(features).any()


def test_the_gradient_of_the_blend_is_that_of_its_loss() -> None:
    from scipy.optimize import check_grad  # noqa: PLC0415

    people = [
        HistoryExample((), 3, False, excluded=(1, 11)),
        HistoryExample((), 11, False),
        HistoryExample((), 7, False),
    ]
    group = Choices(item_features(log_of(shop(20)), 30 * DAY, RELEASED), people)
    point = np.random.default_rng(0).normal(size=FEATURES) / 3
    assert check_grad(lambda w: group.loss(w)[0], lambda w: group.loss(w)[1], point) < 1e-4


def test_an_item_is_as_old_as_its_release_and_those_without_events_share_a_column() -> None:
    now = item_features(log_of([event("a", 0, 1), event("a", 1, 1)]), 2 * DAY, RELEASED)
    assert now.values[-3:, now.columns].T[:4].round(4).tolist() == [
        [1, 0, 0],
        [0, 1, 0.6931],
        [0, 0, 1.0986],
        [0, 0, 1.3863],
    ]
    assert now.columns[11] == now.columns[5]  # an unknown release counts as the middle one
    assert now.counts.sum() == ITEMS
    early = item_features(log_of([event("a", 0, 1)]), -20 * YEAR, RELEASED)
    assert early.values.shape[1] == 1  # nothing is out yet: all are alike
    assert not item_features(log_of([event("a", 0, 1)]), 2 * DAY, RELEASED * np.nan).values[-3:].any()


def test_items_without_events_have_the_prior_of_their_age() -> None:
    features = item_features(log_of([event("a", 11, 1)]), 2 * DAY, RELEASED)
    model = RecencyModel(np.array([0.0] * (FEATURES - 1) + [-1.0]))
    priors = model.priors(features)
    assert (np.diff(priors[:11]) < 0).all()
    assert priors.min() == 0


# --- behaviour ------------------------------------------------------------------------------------------------------


def test_items_of_the_same_people_lie_close_and_cold_items_follow_their_text() -> None:
    log, side = log_of(shop()), catalogue()
    side.vectors[:5] = np.eye(6)[0]
    side.vectors[5:10] = np.eye(6)[1]
    side.vectors[10] = np.eye(6)[0]  # never chosen, but it reads like the first five
    vectors = behaviour_vectors(log, log.now, side.vectors, HistoryConfig(dimensions=2, shrinkage=1))
    products = vectors @ vectors.T
    assert products[0, 1:5].min() > products[0, 5:10].max()
    assert products[10, :5].min() > 2 * abs(products[10, 5:10]).max()
    again = behaviour_vectors(log, log.now, side.vectors, HistoryConfig(dimensions=2, shrinkage=1))
    np.testing.assert_array_equal(vectors, again)


@pytest.mark.parametrize("events", [[event("u", 1, 1)], [event("u", 1, 1), event("u", 2, 2)], [event("u", 1, 1)] * 3])
def test_a_handful_of_events_gives_finite_vectors(events: list[Interaction]) -> None:
    log = log_of(events)
    vectors = behaviour_vectors(log, log.now, catalogue().vectors, HistoryConfig(dimensions=5, shrinkage=0))
    assert vectors.shape == (ITEMS, 5)
    assert np.isfinite(vectors).all()
    assert vectors[1].any()


def test_neighbours_are_those_of_the_formula() -> None:
    log = log_of([event("a", 0, 1), event("a", 1, 2), event("a", 1, 3), event("b", 0, 1), event("b", 1, 1)])
    scores = ItemNeighbours(log, log.now, shrinkage=3).scores([(0,), (), (11,), (0, 1)])
    assert scores[0, 1] == pytest.approx(2 / (np.sqrt(2 * 2) + 3))
    assert scores[0, 0] == 0
    assert not scores[1:3].any()
    assert scores[3, :2].tolist() == pytest.approx([0.4, 0.4])


# --- states in the ranking --------------------------------------------------------------------------------------------


def test_each_example_is_ranked_by_what_was_known_at_its_time() -> None:
    side = catalogue()
    early, late = (side.at(np.eye(ITEMS, dtype=np.float32)[row], None) for row in (3, 4))
    people = [HistoryExample((), 3, held_out=False), HistoryExample((), 4, held_out=False)]
    weights = ScoreWeights(alpha=0, beta=0, gamma=0, delta=1, history_decay=1)
    right = without_instructions(people, [early, late], side)
    assert ranking_metrics(right, side, weights)["mrr"] == 1
    assert ranking_metrics(without_instructions(people, [late, early], side), side, weights)["mrr"] < 1
    assert ranking_metrics(right.take([1]), side, weights)["mrr"] == 1


def test_weights_are_found_where_only_the_states_have_a_prior() -> None:
    side = catalogue()
    state = side.at(np.arange(ITEMS, dtype=np.float32) * 100, None)
    people = [HistoryExample((), ITEMS - 1, held_out=False)] * 3
    examples = without_instructions(people, [state] * 3, side)
    fit = fit_score_weights(examples, side, history=False, prior=True, seed=0, instructions=False)
    assert fit.weights.delta > 0
    assert fit.loss < 0.1


def test_excluded_items_are_no_candidates_of_the_fit_nor_of_the_metrics() -> None:
    side = CatalogueSide(np.eye(3, dtype=np.float32), [0, 0, 0], [0, 0, 0])
    blank, logs = np.zeros((1, 3), np.float32), np.zeros((1, 1), np.float32)
    examples = RankingExamples(blank, logs, [(0,)], [{1: 1.0}], np.ones(1, np.float32), [(0,)])
    weights = ScoreWeights(alpha=0, beta=0, gamma=1, delta=0, history_decay=1)
    assert ranking_metrics(examples, side, weights)["mrr"] == 1  # else item 0 is first
    fit = fit_score_weights(examples, side, history=True, prior=False, seed=0, instructions=False)
    assert fit.loss == pytest.approx(np.log(2), abs=1e-3)  # two candidates, alike
