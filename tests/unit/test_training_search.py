"""A search of settings on tiny data: it repeats itself, prunes, shares a study, and goes on after a kill."""

import contextlib
import os
import sqlite3
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from click.testing import CliRunner, Result
from optuna.trial import TrialState

from training.cli import main
from training.config_loading import load_config
from training.dataset import Dataset
from training.dataset_loading import load_dataset
from training.embedding_cache import EmbeddingCache
from training.objective import objective
from training.plan import make_plan

RATES = "training.learning_rate: {low: 0.01, high: 0.5, log: true}"
HEAD = f"search.space={{{RATES}, training.items_per_label: {{low: 0, high: 8}}}}"
SHORT = ("training.epochs=15", "tracking.backend=none")


@pytest.fixture
def arguments(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Any:
    def listed(*more: str, var: str = "var") -> list[str]:
        return ["search", "--config", str(tiny_config), "--data", str(tiny_data), "--var", str(tmp_path / var), *more]

    return listed


@pytest.fixture
def search(arguments: Any) -> Any:
    def invoke(*more: str, var: str = "var") -> Result:
        return CliRunner().invoke(main, arguments(*more, *SHORT, var=var))

    return invoke


def studies(var: Path) -> list[Path]:
    return sorted(path.parent for path in var.glob("search/shop/*/study.sqlite3"))


def trials_of(var: Path) -> list[optuna.trial.FrozenTrial]:
    (folder,) = studies(var)
    storage = f"sqlite:///{folder / 'study.sqlite3'}"
    return optuna.load_study(study_name="shop", storage=storage).trials


def wait_for(condition: Any, seconds: float = 250) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """Lock a SQLite file, so that whoever opens it waits."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


def test_a_search_goes_on_after_one_of_its_two_workers_was_killed(
    search: Any, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    plan = make_plan(load_config(tiny_config), tiny_data, tmp_path / "var")
    # Theirs alone: the vectors of fewer threads are none of those that runs are made of.
    own = tmp_path / "var/cache" / f"threads-{max(1, (os.cpu_count() or 1) // 2)}"
    cache = EmbeddingCache.below(own, plan.encoder, "mean", 32)
    with ThreadPoolExecutor() as executor:
        with held(cache.path):  # both workers have claimed a trial, and wait for the cache
            first = executor.submit(search, "--workers", "2", HEAD, "search.trials=3")
            wait_for(lambda: running(tmp_path / "var") == 2 or first.done())
            children = psutil.Process().children()  # some of them may be the ended ones of other tests
            alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
            workers = [child for child in alive if "spawn_main" in " ".join(child.cmdline())]
            assert len(workers) == 2
            workers[0].kill()
        result = first.result()
    assert result.exit_code == 1
    assert "a worker was killed by signal 9; the trials that are done stay" in result.stderr
    states = [trial.state for trial in trials_of(tmp_path / "var")]
    assert sorted(states) == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.COMPLETE]  # the other went on
    cut = states.index(TrialState.RUNNING)
    assert not (tmp_path / "var/cache/embeddings").exists()

    result = search(HEAD, "search.trials=3")
    assert result.exit_code == 0, result.output
    assert f"trial {cut} was cut off; begun again" in result.output
    trials = trials_of(tmp_path / "var")
    assert [trial.state for trial in trials if trial.number != cut] == [TrialState.COMPLETE] * 3
    assert trials[cut].state == TrialState.FAIL
    assert trials[3].params == trials[cut].params
    assert len({trial.params["training.learning_rate"] for trial in trials}) == 3  # no two drew alike


def running(var: Path) -> int:
    """How many trials are under way with all of their settings, read without taking part in the study."""
    query = "SELECT COUNT(*) FROM trials JOIN trial_params USING (trial_id) WHERE state = 'RUNNING'"
    for folder in studies(var):
        # The tables may not be there yet, or be written just now.
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(f"file:{folder / 'study.sqlite3'}?mode=ro", uri=True)) as study,
        ):
            return int(study.execute(query).fetchone()[0]) // 2
    return 0


def test_a_resumed_search_draws_as_one_that_was_not_cut_off(search: Any, tmp_path: Path) -> None:
    assert search(HEAD, "search.trials=4", var="whole").exit_code == 0
    assert search(HEAD, "search.trials=2", var="cut").exit_code == 0
    result = search(HEAD, "search.trials=4", var="cut")
    assert "2 of 4 trials done" in result.output
    whole, cut = (trials_of(tmp_path / var) for var in ("whole", "cut"))
    assert [(trial.params, trial.value) for trial in whole] == [(trial.params, trial.value) for trial in cut]
    best = min(whole, key=lambda trial: trial.value or 0.0)
    (folder,) = studies(tmp_path / "cut")
    found = yaml.safe_load((folder / "best.yaml").read_text(encoding="utf-8"))
    assert found["training"]["learning_rate"] == pytest.approx(best.params["training.learning_rate"])
    assert found["training"]["items_per_label"] == best.params["training.items_per_label"]
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    assert f"training.items_per_label={found['training']['items_per_label']}" in result.output.splitlines()[-1]
    assert "search." not in result.output.splitlines()[-1]


def test_bad_trials_are_pruned_after_an_epoch_and_leave_no_checkpoints(search: Any, tmp_path: Path) -> None:
    tuning = ("encoder_tuning.method=full", "encoder_tuning.epochs=3", "encoder_tuning.batch_size=32")
    space = "search.space={encoder_tuning.learning_rate: {choices: [1.0e-6, 0.002, 0.003]}}"
    result = search(*tuning, space, "search.trials=6")
    assert result.exit_code == 0, result.output
    trials = trials_of(tmp_path / "var")
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert set(trial.intermediate_values) == {1, 2}  # not after the first epoch, and before the third
        complete = [other for other in trials[: trial.number] if other.state == TrialState.COMPLETE]
        median = statistics.median(other.intermediate_values[2] for other in complete)
        assert min(trial.intermediate_values.values()) > median
    (folder,) = studies(tmp_path / "var")
    assert not list((folder / "trials").iterdir())


def test_trials_that_diverge_fail_and_the_search_says_so(search: Any) -> None:
    space = "search.space={encoder_tuning.learning_rate: {choices: [1.0e+30, 1.0e+35]}}"
    result = search("encoder_tuning.method=full", "encoder_tuning.epochs=1", space, "search.trials=2")
    assert result.exit_code == 1
    assert "trial 0: encoder_tuning: the validation loss is not finite" in result.output
    assert result.stderr.splitlines()[-1].startswith("Error: search: no trial has a result")


def test_the_objective_does_not_read_the_test_split(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    plan = make_plan(load_config(tiny_config, SHORT), tiny_data, tmp_path)
    dataset = load_dataset(plan.config, tiny_data)
    other = replace(
        dataset,
        instructions=tuple(
            replace(one, text="something else", label="Hats") if one.split == "test" else one
            for one in dataset.instructions
        ),
    )
    taught = replace(dataset, instructions=tuple(replace(one, label="Hats") for one in dataset.instructions))
    value = objective(plan, dataset)
    assert objective(plan, other) == value != objective(plan, taught)


def test_the_objective_tries_the_weights_of_what_nobody_taught_as_a_run_does(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def value(weights: str) -> float:
        plan = make_plan(
            load_config(tiny_config, [*SHORT, f"training.untaught_weights={weights}"]), tiny_data, tmp_path
        )
        return objective(plan, load_dataset(plan.config, tiny_data))

    assert value("[1.0]") != value("[0.01]")
    assert value("[1.0,0.01]") == min(value("[1.0]"), value("[0.01]"))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{}", "search.space is empty"),
        ("{training.lerning_rate: {low: 1, high: 2}}", "did you mean 'learning_rate'?"),
        ("{trainin.epochs: {low: 1, high: 2}}", "did you mean 'training'?"),
        ("{training.learning_rate: {low: -1.0, high: 2.0}}", "training.learning_rate: Input should be greater than 0"),
        ("{training.weight_decays: {choices: [0.1]}}", "training.weight_decays: Input should be a valid tuple"),
        ("{training.epochs: {low: 5, high: 2}}", "`low` and `high` must be finite, and `low` the smaller one"),
        ("{training.epochs: {low: 5, hihg: 9}}", "did you mean 'high'?"),
        ("{training.item_weight: {low: 0.0, high: 1.0, log: true}}", "a logarithmic scale starts above 0"),
        ("{training.seed: {choices: [1, 1]}}", "a choice stands there twice"),
        ("{export.precision: {choices: [int8]}}", "'export.precision' cannot be searched"),
        ("{history.half_life_days: {low: 1, high: 60}}", "'history.half_life_days' cannot be searched"),
        ("{training.max_history: {low: 1, high: 60}}", "'training.max_history' cannot be searched"),
        ("{continual.head.epochs: {low: 1, high: 60}}", "'continual.head.epochs' cannot be searched"),
        ("{training.shots: {low: 1, high: 5}}", "'training.shots' cannot be searched"),
        ("{distillation.teacher: {choices: [a, b]}}", "'distillation.teacher' cannot be searched"),
        ("{encoder_tuning.rank: {low: 1, high: 4}}", "no effect while encoder_tuning.method is frozen"),
    ],
)
def test_a_bad_space_is_one_line_before_any_trial(search: Any, tmp_path: Path, space: str, message: str) -> None:
    result = search(f"search.space={space}")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "var/search").exists()


def test_a_seed_that_draws_the_validation_split_is_not_searched(search: Any) -> None:
    result = search("search.space={training.seed: {choices: [0, 1]}}", "training.shots=2")
    assert "'training.seed' cannot be searched" in result.stderr


def test_a_config_that_distils_is_not_searched(search: Any, tmp_path: Path) -> None:
    result = search(HEAD, "distillation.teacher=some-run")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: search: no trial distils; leave `distillation` out, and search the settings of its teacher"
    ]
    assert not (tmp_path / "var/search").exists()


def test_a_trial_validates_on_what_a_run_would(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[set[str]] = []

    def spy(_: object, dataset: Dataset, *__: object) -> float:
        validated.append({one.instruction_id.partition("-")[0] for one in dataset.split("validation")})
        return 0.0

    monkeypatch.setattr("training.search.objective", spy)
    synthetic = "sources.main.synthetic={phrases: ['{colour} {label}']}"
    result = search(f"search.space={{{RATES}}}", "search.trials=2", synthetic, "training.shots=0")
    assert validated == [{"synthetic"}, {"synthetic"}], result.output
