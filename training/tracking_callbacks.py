"""The Trainer's own callbacks for TensorBoard and Weights & Biases, with each learning rate under its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback, WandbLogModel

Logs = dict[str, Any]


class TensorBoardCurves(TensorBoardCallback):
    """Writes to a given folder; a tuning that goes on replaces what came after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        """Write under `folder`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = folder

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the file."""
        if state.is_world_process_zero:
            self.tb_writer = SummaryWriter(str(self._folder), purge_step=state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **facts: Any,
    ) -> None:
        """Write the numbers of a step."""
        named = with_learning_rates(logs or {}, facts["optimizer"])
        super().on_log(args, state, control, logs=named, **facts)  # type: ignore[no-untyped-call]


class WandbCurves(WandbCallback):
    """Writes to the run that is open. It never sends a model, and no setting that may hold a path."""

    def __init__(self) -> None:
        """Use the open run."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._log_model = WandbLogModel.FALSE

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **_: Any) -> None:
        """The run is there already, with its settings."""
        self._initialized = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: Logs | None = None,
        **facts: Any,
    ) -> None:
        """Write the numbers of a step."""
        named = with_learning_rates(logs or {}, facts["optimizer"])
        super().on_log(args, state, control, model=model, logs=named, **facts)  # type: ignore[no-untyped-call]


def with_learning_rates(logs: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Logs:
    """The logs with two learning rates in place of one, which is only that of the optimiser's first group, the head."""
    named = dict(logs)
    if "learning_rate" in named:
        head, *_, encoder = optimizer.param_groups
        named["head_learning_rate"] = named.pop("learning_rate")
        # One schedule moves all groups, each from its own start.
        named["encoder_learning_rate"] = named["head_learning_rate"] * encoder["initial_lr"] / head["initial_lr"]
    return named
