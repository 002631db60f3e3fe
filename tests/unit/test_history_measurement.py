"""The measurement of histories may not look ahead, and what training does with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from history_helpers import RELEASED, ROWS, catalogue, known_before, log_of, shop

from training.cli import main
from training.dataset import Interaction
from training.event_log import DAY
from training.history import HistoryExample, history_examples
from training.history_config import HistoryConfig
from training.history_evaluation import leave_last_out, rank_metrics, target_ranks
from training.run import Run
from training.taste import DIMENSIONS
from training.timeline import Timeline

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


def test_item_neighbours_know_the_whole_history_however_little_of_it_the_service_reads() -> None:
    interactions = shop()
    timeline = Timeline(log_of(interactions), catalogue(), HistoryConfig(minimum_events=3))
    measured = [
        leave_last_out(timeline, history_examples(interactions, ROWS, longest), known_before(interactions), seed=0)
        for longest in (1, 20)
    ]
    short, long = (one["rankings"] for one in measured)
    assert short["item_knn"] == long["item_knn"]
    assert short["history_only"] != long["history_only"]


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
