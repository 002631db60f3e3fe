"""The encoder's tuning on `transformers.Trainer`: loss, optimiser groups, checkpoints that survive a kill."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalPrediction

from training import processes
from training.adapters import orthogonality_loss
from training.config import EncoderTuningConfig
from training.distillation_config import DistillationConfig
from training.errors import DivergedError
from training.model import InstructionModel
from training.tuning_examples import PAD_TO

COMPLETE = "complete"  # a file in a checkpoint, written last
ALLOTMENT = "rank_allotment"


def forward_by_length(model: InstructionModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """`h` [B, H] and `u` [B, K] of a batch, its rows padded on the right, int64 [B, L].

    On a CPU rows of like length run together, so that one long text does not pad all others: on WebShop's instructions
    and their items 2.3 times as fast, with less than half of the memory. A GPU has better use for one large batch.
    """
    if input_ids.device.type != "cpu":
        return cast(tuple[Tensor, Tensor], model(input_ids, attention_mask))
    lengths = attention_mask.sum(dim=1)
    padded = ((lengths + PAD_TO - 1) // PAD_TO * PAD_TO).clamp(min=1, max=input_ids.shape[1])
    groups = [torch.nonzero(padded == length).flatten() for length in torch.unique(padded).tolist()]
    parts = [
        model(input_ids[rows, : int(padded[rows[0]])], attention_mask[rows, : int(padded[rows[0]])]) for rows in groups
    ]
    order = torch.argsort(torch.cat(groups))
    return torch.cat([h for h, _ in parts])[order], torch.cat([u for _, u in parts])[order]


class LearningModel(nn.Module):
    """Wraps an instruction model for the Trainer; a subclass's `forward` returns its `loss` and its `logits`."""

    _keys_to_ignore_on_save: None = None  # the Trainer asks a model for it when it loads the best checkpoint

    def __init__(self, model: InstructionModel) -> None:
        """Wrap `model`; its encoder may have adapters."""
        super().__init__()
        self.model = model


class TunableModel(LearningModel):
    """An instruction model that learns from labels and from the items that answer."""

    def __init__(self, model: InstructionModel, ranking_weight: float, temperature: float) -> None:
        """Wrap `model`; its encoder may have adapters."""
        super().__init__(model)
        self.ranking_weight = ranking_weight
        self.temperature = temperature

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        weights: Tensor,
        asking: Tensor,
        answering: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """The `loss` of a collated batch (a scalar) and the `logits` of its B labelled texts [B, K].

        The loss is the weighted mean of the labels' cross-entropy. While training it adds the listwise cross-entropy of
        each instruction over the batch's items, `-Σ t_i log softmax(⟨h, e⟩ / temperature)_i`, times its weight.
        """
        h, u = forward_by_length(self.model, input_ids, attention_mask)
        logits = u[: len(labels)]
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        if self.training:
            if self.ranking_weight and len(asking):
                scores = h[asking] @ h[answering].T / self.temperature
                loss = loss + self.ranking_weight * nn.functional.cross_entropy(scores.float(), targets)
            orthogonality = orthogonality_loss(self.model.encoder)
            loss = loss if orthogonality is None else loss + orthogonality
        return {"loss": loss, "logits": logits}


class EncoderTrainer(Trainer):
    """A Trainer whose head learns at its own rate, and whose checkpoints hold only what is trained."""

    def __init__(self, head_learning_rate: float, patience: int, say: Callable[[str], None], **arguments: Any) -> None:
        """Take the Trainer's arguments, the head's learning rate, and how long to wait for a better epoch.

        `say` is given a line an epoch.
        """
        callbacks = [EarlyStoppingCallback(patience), Report(say), *arguments.pop("callbacks", ())]
        super().__init__(compute_metrics=top1_accuracy, callbacks=callbacks, **arguments)
        self.remove_callback(PrinterCallback)
        self._tuned: nn.Module = arguments["model"]
        self._head_learning_rate = head_learning_rate
        if processes.count() > 1:
            # The sampler draws from torch's generator, and all processes must draw the same order to share it out.
            self.accelerator.rng_types = ["torch"]

    def learn(self, resume: Path | None) -> TrainerState:
        """Train to the end, from the checkpoint `resume` if there is one; return what became of it."""
        self.add_callback(Checkpoints())  # last: its mark says that the others are done
        if resume is not None:
            state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
            if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
                # It had stopped, maybe early. The Trainer forgets that and would learn on, so no epoch is left to it.
                self.args.num_train_epochs = round(state.epoch or 0)
        self.train(resume_from_checkpoint=None if resume is None else str(resume))
        return self.state

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group for the head, without weight decay (its start is a meaning, not noise), two for the encoder."""
        if self.optimizer is None:
            tuned = self._tuned if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            decaying = set(self.get_decay_parameter_names(tuned))
            groups: dict[str, list[nn.Parameter]] = {"head": [], "decaying": [], "rest": []}
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    group = "head" if ".head." in name else "decaying" if name in decaying else "rest"
                    groups[group].append(parameter)
            self.optimizer = kind(
                [
                    {"params": groups["head"], "weight_decay": 0.0, "lr": self._head_learning_rate},
                    {"params": groups["decaying"], "weight_decay": self.args.weight_decay},
                    {"params": groups["rest"], "weight_decay": 0.0},
                ],
                **settings,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Leave the frozen weights out of a checkpoint: they are in the encoder's own folder."""
        trained = {name for name, parameter in self._tuned.named_parameters() if parameter.requires_grad}
        state = self._tuned.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: tensor for name, tensor in state.items() if name in trained})


class OneGpuArguments(TrainingArguments):
    """A process uses one GPU: on several the Trainer would cut each tensor of a batch, which differ in their rows."""

    @property
    def n_gpu(self) -> int:
        """The number of GPUs of this process, at most 1."""
        return min(int(super().n_gpu), 1)


def training_arguments(
    checkpoints: Path, config: EncoderTuningConfig | DistillationConfig, batch_size: int, **more: Any
) -> TrainingArguments:
    """The Trainer's arguments that every tuning has: each epoch is measured and kept, the best one counts.

    Its checkpoints lie in `checkpoints`, `batch_size` is that of one process, `more` are arguments of the caller's own.
    """
    return OneGpuArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2 * batch_size,
        num_train_epochs=config.epochs,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        seed=config.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="epoch",
        disable_tqdm=True,
        report_to="none",
        **more,
    )


def log_of_best(state: TrainerState, section: str) -> Mapping[str, float]:
    """What validation found after the best epoch of a tuning that the config's `section` describes.

    Raises:
        DivergedError: No epoch had a finite loss.
    """
    if state.best_metric is None or not math.isfinite(state.best_metric):
        raise DivergedError(f"{section}: the validation loss is not finite; set a lower learning_rate")
    return next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log)


class Checkpoints(TrainerCallback):
    """Marks a checkpoint as complete once all of it is written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the mark; each process has a file of its own in the checkpoint."""
        processes.wait()
        if state.is_world_process_zero:
            (Path(args.output_dir or "") / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, None if there is none; incomplete ones are removed."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            found[checkpoint_step(path)] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def checkpoint_step(checkpoint: Path) -> int:
    """The number of steps of the optimiser that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


class RankAllotment(TrainerCallback):
    """Lets AdaLoRA allot its ranks after each step, and keeps in each checkpoint what it has learned of them."""

    def __init__(self, encoder: PeftModel, resume: Path | None) -> None:
        """Act on `encoder`; go on from the checkpoint `resume`, if there is one."""
        self._adapter: Any = encoder.base_model  # peft gives its parts no types
        self._settings = cast(Any, encoder.peft_config["default"])
        if resume is not None:
            allocator, tensors = self._adapter.rankallocator, load_file(resume / f"{ALLOTMENT}.safetensors")
            for key, tensor in tensors.items():
                kind, _, name = key.partition(":")
                getattr(allocator, kind)[name] = tensor
            pattern = json.loads((resume / f"{ALLOTMENT}.json").read_text(encoding="utf-8"))
            self._settings.rank_pattern = pattern

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called while the gradients are still there."""
        self._adapter.update_and_allocate(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the importances and the pattern; they are the same in all processes."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        allocator = self._adapter.rankallocator
        kinds = ("ipt", "exp_avg_ipt", "exp_avg_unc")
        tensors = {f"{kind}:{name}": t.contiguous() for kind in kinds for name, t in getattr(allocator, kind).items()}
        save_file(tensors, folder / f"{ALLOTMENT}.safetensors")
        pattern = self._settings.rank_pattern
        (folder / f"{ALLOTMENT}.json").write_text(json.dumps(pattern), encoding="utf-8")


class Report(TrainerCallback):
    """Shows progress on a terminal and says one line an epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Give the lines to `say`."""
        self._say = say
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar where the tuning starts or goes on."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="tuning encoder",
            unit="step",
            disable=None if state.is_world_process_zero else True,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._bar.update()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **facts: Any,
    ) -> None:
        """Say how good the epoch is."""
        metrics: Mapping[str, float] = facts["metrics"]
        self._say(
            f"encoder, epoch {state.epoch:.0f}: validation loss {metrics['eval_loss']:.4f}, "
            f"top-1 {metrics['eval_top1_accuracy']:.4f}"
        )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()


def top1_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of texts whose best label is theirs."""
    logits = np.asarray(prediction.predictions)
    return {"top1_accuracy": float((logits.argmax(axis=1) == np.asarray(prediction.label_ids)).mean())}
