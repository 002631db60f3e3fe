"""What a search leaves for people: a table, the settings' importances, a plot, and the best settings as YAML."""

import io
import json
from pathlib import Path
from typing import Any

import optuna
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from training.atomic import write_whole
from training.errors import TrainingError
from training.search import Search
from training.search_space import settings_of

SHOWN = 10  # trials in the table


def best_values(search: Search, study: optuna.Study) -> list[str]:
    """The best trial's settings as overrides, `training.learning_rate=0.05`.

    Raises:
        TrainingError: No trial has a result.
    """
    return [f"{key}={_text(value)}" for key, value in _best(search, study).items()]


def trials_table(search: Search, study: optuna.Study) -> Table:
    """The best trials, best first, and how many there are of each outcome."""
    trials = _complete(study)
    space = search.config.search.space
    trials.sort(key=_value, reverse=search.config.search.direction == "maximize")
    table = Table(title=f"{search.config.domain}: best trials of {len(trials)} by {search.config.search.metric}")
    for name in ("trial", search.config.search.metric, *space):
        table.add_column(name, justify="right")
    for trial in trials[:SHOWN]:
        drawn = settings_of(space, trial.params)
        shown = [f"{drawn[key]:.4g}" if isinstance(drawn[key], float) else _text(drawn[key]) for key in space]
        table.add_row(str(trial.number), f"{_value(trial):.4f}", *shown)
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    table.caption = f"{states.count(TrialState.PRUNED)} pruned, {states.count(TrialState.FAIL)} failed or cut off"
    return table


def importances_table(study: optuna.Study, seed: int) -> Table:
    """How much of the metric's variance each setting explains (fANOVA, Hutter et al. 2014), where that can be told."""
    table = Table(title="importance of the settings", show_header=False)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all of them equally good
        table.caption = "too few different trials to tell"
        return table
    for key, share in found.items():
        table.add_row(key, f"{share:.2f}")
    return table


def write_report(search: Search, study: optuna.Study) -> list[Path]:
    """Write `best.yaml` and `history.png` into the study's folder, each whole or not at all; return their paths.

    Raises:
        TrainingError: No trial has a result, or the folder cannot be written.
    """
    contents = {"best.yaml": _best_yaml(search, study), "history.png": _history(search, study)}
    try:
        for name, content in contents.items():
            write_whole(search.folder / name, content)
    except OSError as error:
        raise TrainingError(f"{search.folder}: cannot be written ({error.strerror}); free some space") from None
    return [search.folder / name for name in contents]


def _best(search: Search, study: optuna.Study) -> dict[str, Any]:
    if not _complete(study):
        raise TrainingError("search: no trial has a result; narrow search.space to settings that can be tuned with")
    return settings_of(search.config.search.space, study.best_trial.params)


def _best_yaml(search: Search, study: optuna.Study) -> bytes:
    """The settings as they stand in a domain's YAML."""
    tree: dict[str, Any] = {}
    for key, value in _best(search, study).items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    trial, metric = study.best_trial, search.config.search.metric
    head = f"# Trial {trial.number} of {len(study.get_trials(deepcopy=False))}: {metric} {_value(trial):.5f}.\n"
    return (head + yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)).encode()


def _history(search: Search, study: optuna.Study) -> bytes:
    """A plot of each trial's value and of the best one so far."""
    trials = _complete(study)
    numbers, values = [trial.number for trial in trials], [_value(trial) for trial in trials]
    better = min if search.config.search.direction == "minimize" else max
    best = [better(values[: place + 1]) for place in range(len(values))]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, values, "o", label="trial")
    axes.step(numbers, best, where="post", label="best so far")
    axes.set(xlabel="trial", ylabel=search.config.search.metric.replace("_", " "), title=search.config.domain)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _value(trial: FrozenTrial) -> float:
    return float(trial.value) if trial.value is not None else float("nan")


def _text(value: Any) -> str:
    """A value as YAML reads it back: a float with a dot before its `e`, without which it would be text."""
    if isinstance(value, float):
        return yaml.safe_dump(value).split()[0]
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
