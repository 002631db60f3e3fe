"""Tells a trial how the encoder's tuning goes, and ends it where others were better by then."""

from collections.abc import Mapping
from typing import Any

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EpochReports(TrainerCallback):
    """Reports the validation metric of each epoch to a trial."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        """Report `metric`, as the config's `search.metric` names it, to `trial`."""
        self._trial = trial
        self._key = f"eval_{metric.removeprefix('validation_')}"

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report again what a tuning that was cut off had reached; it goes on from there."""
        for log in state.log_history:
            if self._key in log:
                self._report(log, log["epoch"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **facts: Any) -> None:
        """Report the epoch.

        Raises:
            TrialPruned: The study's pruner gives the trial up.
        """
        self._report(facts["metrics"], state.epoch or 0.0)
        if self._trial.should_prune():
            raise optuna.TrialPruned

    def _report(self, metrics: Mapping[str, float], epoch: float) -> None:
        self._trial.report(metrics[self._key], round(epoch))
