"""Histories: priors and behaviour vectors learned from events in time, and a measurement that may not look ahead."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from training.baselines import ItemNeighbours, popularity
from training.behaviour import behaviour_vectors
from training.cli import main
from training.dataset import Interaction
from training.event_log import DAY, EventLog
from training.history import HistoryExample, history_examples
from training.history_config import HistoryConfig
from training.history_evaluation import leave_last_out, rank_metrics, target_ranks
from training.metrics import ranking_metrics
from training.priors import FEATURES, YEAR, Choices, RecencyModel, fit_recency, item_features
from training.ranking import RankingExamples, fit_score_weights
from training.ranking_examples import without_instructions
from training.run import Run
from training.score import CatalogueSide, ScoreWeights
from training.taste import DIMENSIONS, fit_taste
from training.timeline import Timeline

ITEMS = 12
ROWS = {f"i{row}": row for row in range(ITEMS)}
RELEASED = np.array([-row * YEAR for row in range(ITEMS - 1)] + [np.nan])


def event(user: str, row: int, day: float, value: float = 1.0) -> Interaction:
    return Interaction(user, f"i{row}", value, day * DAY)


def log_of(events: list[Interaction]) -> EventLog:
    return EventLog.of(events, ROWS)


def catalogue(items: int = ITEMS, seed: int = 0) -> CatalogueSide:
    vectors = np.random.default_rng(seed).normal(size=(items, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return CatalogueSide(vectors, [0] * items, [0.0] * items)


def known_before(
    interactions: list[Interaction], *, exclude_seen: bool = False
) -> Callable[[float], list[HistoryExample]]:
    def before(time: float) -> list[HistoryExample]:
        earlier = [one for one in interactions if one.timestamp < time]
        return history_examples(earlier, ROWS, 20, exclude_seen=exclude_seen)

    return before


def shop(people: int = 80, seed: int = 0) -> list[Interaction]:
    """Two tastes, items 0 to 4 and 5 to 9, each week another of them in fashion; 10 and 11 are never chosen."""
    generator = np.random.default_rng(seed)
    events = []
    for person in range(people):
        first = generator.uniform(0, 40)
        rows = generator.permutation(5)
        for step in range(5):
            day = first + step * 1.5
            fashion = int(day // 7) % 5
            row = fashion if generator.random() < 0.5 and fashion not in rows[:step] else int(rows[step])
            events.append(event(f"u{person}", row + 5 * (person % 2), day))
    return events


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


# --- taste ------------------------------------------------------------------------------------------------------------


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


# --- the measurement --------------------------------------------------------------------------------------------------


def test_ranks_leave_the_excluded_out_and_ties_keep_the_catalogue_order() -> None:
    people = [HistoryExample((), 2, True, excluded=(0,)), HistoryExample((), 0, True)]
    scores = np.array([[9, 1, 1, 1], [0, 0, 0, 0]], dtype=np.float32)
    assert target_ranks(scores, people).tolist() == [1, 0]


def test_metrics_of_ranks() -> None:
    metrics = rank_metrics(np.array([0, 2, 10]), seed=0)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert metrics["hit_rate@10"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    low, high = metrics["ndcg@10_interval"]
    assert 0 <= low <= metrics["ndcg@10"] <= high <= 1


def test_what_is_learned_beats_the_baselines_where_there_is_something_to_learn() -> None:
    configured = HistoryConfig(
        prior="recency", vectors="behaviour", exclude_seen=True, dimensions=4, minimum_events=3, shrinkage=1
    )
    interactions = shop(160)
    people = history_examples(interactions, ROWS, 20, exclude_seen=True)
    people.sort(key=lambda person: person.time)
    timeline = Timeline(log_of(interactions), catalogue(), configured)
    before = known_before(interactions, exclude_seen=True)
    measured = leave_last_out(timeline, people, before, seed=0)
    rankings = measured["rankings"]
    assert measured["people_measured"] == len([person for person in people if person.events >= 3])
    assert rankings["history_and_prior"]["mrr"] > rankings["popularity"]["mrr"] + 0.05
    assert rankings["history_and_prior"]["mrr"] > rankings["prior_only"]["mrr"]
    assert rankings["history_only"]["mrr"] >= rankings["popularity"]["mrr"]
    assert measured["ratio_to_best_baseline"] > 0
    json.dumps(measured, allow_nan=False)
    assert leave_last_out(timeline, people, before, seed=0) == measured


@pytest.mark.parametrize("taste", [False, True])
def test_the_measurement_of_a_time_does_not_change_with_what_came_later(taste: bool) -> None:
    asked = HistoryConfig(prior="recency", vectors="behaviour", taste=taste, dimensions=4, minimum_events=3)
    everything = shop(120)
    later = min(one.timestamp for one in everything) + 28.5 * DAY  # soon after a refresh: a look ahead would see it
    people = history_examples([one for one in everything if one.timestamp < later], ROWS, 20)
    people.sort(key=lambda person: person.time)
    cut = [one for one in everything if one.timestamp < later]
    other = [*cut, *(Interaction(f"new{n}", f"i{n % 7}", 1.0, later + n) for n in range(400))]
    results = [
        leave_last_out(Timeline(log_of(own), catalogue(), asked, RELEASED), people, known_before(own), seed=0)
        for own in (everything, cut, other)
    ]
    assert results[0]["people_measured"] > 20
    assert results[1]["rankings"] == results[0]["rankings"]
    assert results[2]["rankings"] == results[0]["rankings"]


# --- through training ---------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_carries_what_its_histories_need(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    given = ("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", "training.epochs=2")
    asked = ["history.prior=recency", "history.vectors=behaviour", "history.dimensions=3", "history.exclude_seen=true"]
    asked += ["history.taste=true", "history.refresh_days=0.001"]  # the events lie within minutes
    events = [f"u{n},item-{row},1,{n * 100 + step}" for n in range(20) for step, row in enumerate((n + 5, n % 3))]
    (tiny_data / "shop" / "events.csv").write_text("\n".join(["user,item,value,time", *events]))
    plain = Run.open(invoke(*given).strip().rpartition("run: ")[2])
    run = Run.open(invoke(*given, *asked).strip().rpartition("run: ")[2])
    assert plain.history_vectors() is None
    vectors = run.history_vectors()
    assert vectors is not None
    assert vectors.shape == (32, 3 + DIMENSIONS)
    priors = [item.prior for item in run.catalogue()]
    assert min(priors) >= 0
    assert min(priors[:3]) > max(priors[3:])  # what people came to last
    assert priors != [item.prior for item in plain.catalogue()]
    history = json.loads((run.path / "metrics.json").read_text())["history"]
    assert history["people_held_out"] > 0
    assert "leave_last_out" in history


def test_a_model_needs_no_people(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    events = tiny_data / "shop" / "events.csv"
    events.write_text("user,item,value,time\nu,item-1,0,1\nu,item-2,0,2\n")  # nothing but rejections
    asked = ("history.prior=recency", "history.vectors=behaviour", "training.epochs=2")
    output = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", *asked)
    run = Run.open(output.strip().rpartition("run: ")[2])
    assert (run.score_weights.gamma, run.score_weights.delta) == (0, 0)
