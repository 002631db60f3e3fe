"""Tunes the encoder together with a head, merges what it learned into its weights and saves them."""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState, TrainingArguments

from training import processes
from training.adapters import is_adaptive, make_trainable, merged, trainable_parameters
from training.atomic import new_folder
from training.bottleneck import save_bottlenecks, save_encoder
from training.config import DomainConfig, EncoderTuningConfig
from training.dataset import Dataset
from training.embedding_cache import EmbeddingCache
from training.encoder_source import EncoderSource, weights_sha256
from training.errors import ConfigError, TrainingError
from training.head import HeadExamples, StartHead, TunedHead, label_centroids, sample_items, tune_head
from training.model import InstructionModel
from training.run import TOKENIZER_FILES, copy_encoder_files, copy_files
from training.score import CatalogueSide
from training.tuning_examples import Collator, TuningExamples, tuning_examples
from training.tuning_folder import forget, only_one
from training.tuning_trainer import (
    EncoderTrainer,
    RankAllotment,
    TunableModel,
    checkpoint_step,
    last_checkpoint,
    log_of_best,
    training_arguments,
)

Say = Callable[[str], None]
RESULT = "tuning.json"
HEAD = "head.safetensors"


class TuningPlan(Protocol):
    """What a tuning has to know: a training's `Plan`, or that of another tuning."""

    @property
    def config(self) -> DomainConfig:
        """Of it, the sections `encoder`, `encoder_tuning` and `training` count here."""

    @property
    def encoder(self) -> EncoderSource:
        """What is tuned."""

    @property
    def var(self) -> Path:
        """Where all that is produced lies."""

    @property
    def tuning_folder(self) -> Path:
        """A folder of this plan's own."""


@dataclass(frozen=True)
class TuningRecord:
    """How the encoder was tuned. `parameters` counts encoder and head, `trained` those that were trained.

    `processes` is the number of processes that shared the batches.
    """

    method: str
    parameters: int
    trained: int
    trained_share: float
    epochs: float
    best_step: int
    steps: int
    validation_loss: float
    validation_top1_accuracy: float
    processes: int = 1


def tune_encoder(
    plan: TuningPlan,
    dataset: Dataset,
    say: Say,
    callbacks: Sequence[TrainerCallback] = (),
    start: StartHead | None = None,
) -> tuple[EncoderSource, StartHead, TuningRecord]:
    """Tune the plan's encoder; return the tuned one, in the plan's tuning folder, and the head that learned with it.

    A tuning that was cut off goes on from its last checkpoint, to the same result; one that is done is used again.
    Equal inputs give equal bytes on the same CPU with the same number of threads. `callbacks` join the Trainer's own.
    The head begins as `start`; without one, as the head that the frozen encoder would get.

    Raises:
        ConfigError: The settings do not fit the encoder or the hardware.
        DivergedError: The loss is not finite.
        TrainingError: The folder cannot be written, or another training of the plan works in it.
    """
    folder = _folder(plan)
    try:
        with only_one(plan.tuning_folder):
            if (folder / RESULT).is_file():
                say("encoder: tuned before, used again")
            else:
                _tune(plan, dataset, folder, say, callbacks, start)
            record = TuningRecord(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be used ({error.strerror}); free some space or check its rights"
        ) from None
    head = load_file(folder / HEAD)
    return EncoderSource(folder, weights_sha256(folder)), StartHead(head["weight"], head["bias"]), record


def help_tuning(plan: TuningPlan, dataset: Dataset) -> None:
    """Take a share of the batches of the main process, which tunes the same encoder; see `training.processes`.

    `dataset` is the main process's, with what was cut from it and made for it.
    """
    _tune(plan, dataset, _folder(plan), lambda _: None)


def forget_tuning(plan: TuningPlan) -> None:
    """Remove the plan's tuning folder, once the run holds the tuned encoder."""
    forget(plan.tuning_folder)


def _folder(plan: TuningPlan) -> Path:
    return (plan.tuning_folder / "encoder").resolve()


def _tune(
    plan: TuningPlan,
    dataset: Dataset,
    folder: Path,
    say: Say,
    callbacks: Sequence[TrainerCallback] = (),
    start: StartHead | None = None,
) -> None:
    config, settings = plan.config.encoder_tuning, plan.config.encoder
    model = InstructionModel.from_folder(
        plan.encoder.folder, settings.pooling, settings.max_length, len(dataset.labels)
    )
    if processes.is_main():  # the others get the main process's weights, as the tuning starts
        head = start or _start_head(plan, dataset, model)
        model.head.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    train, validation = tuning_examples(dataset, model, config)
    transformers.set_seed(config.seed)
    steps = config.epochs * math.ceil(math.ceil(len(train) / config.batch_size) / config.gradient_accumulation)
    model.encoder = cast(transformers.PreTrainedModel, make_trainable(model.encoder, config, steps))
    trained, parameters = trainable_parameters(model)
    say(
        f"encoder: {config.method} trains {trained:,} of {parameters:,} parameters ({trained / parameters:.2%}) on "
        f"{len(train):,} texts, up to {steps:,} steps"
    )
    started = time.monotonic()
    # Another number of processes makes other batches, and keeps other states of chance.
    checkpoints = folder.parent / ("checkpoints" if processes.count() == 1 else f"checkpoints-{processes.count()}")
    state = _run_trainer(model, train, validation, config, checkpoints, say, callbacks)
    if not processes.is_main():
        return
    record = _record(state, model, config)
    say(f"encoder: best at step {record.best_step} of {record.steps}, {time.monotonic() - started:.0f} s")
    with new_folder(folder) as temporary:
        encoder = merged(model.encoder.cpu())
        if config.method == "bottleneck":  # all that was learned lies beside the weights, which stay byte for byte
            copy_encoder_files(plan.encoder.folder, temporary)
            save_bottlenecks(encoder, temporary)
        else:
            save_encoder(encoder, temporary)
            copy_files(plan.encoder.folder, temporary, TOKENIZER_FILES)
        learned = {name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}
        save_file(learned, temporary / HEAD)
        (temporary / RESULT).write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
    shutil.rmtree(checkpoints)


def _start_head(plan: TuningPlan, dataset: Dataset, model: InstructionModel) -> TunedHead:
    """The head that the frozen encoder would get, from the drawn items alone: a start, so not worth the catalogue."""
    config, settings = plan.config.encoder_tuning, plan.config.encoder
    rows = sample_items(dataset.items, max(1, config.items_per_label), config.seed, dataset.held_out)
    train, validation = dataset.split("train"), dataset.split("validation") or dataset.split("train")
    label_id = {label: number for number, label in enumerate(dataset.labels)}
    cache = EmbeddingCache.below(plan.var, plan.encoder, settings.pooling, settings.max_length)
    texts = [
        *(item.text for item in (dataset.items[row] for row in rows)),
        *(one.text for one in [*train, *validation]),
    ]
    vectors = cache.embed(model, texts, plan.config.training.embedding_batch_size)
    ids = np.array(
        [label_id[dataset.items[row].label] for row in rows] + [label_id[one.label] for one in [*train, *validation]]
    )
    weights = np.ones(len(texts), np.float32)
    weights[: len(rows)] = config.item_weight
    taught, held = slice(0, len(rows) + len(train)), slice(len(rows) + len(train), None)
    centroids = label_centroids(CatalogueSide(vectors[: len(rows)], ids[: len(rows)].tolist(), ()), len(dataset.labels))
    return tune_head(
        HeadExamples(vectors[taught], ids[taught], weights[taught]),
        HeadExamples(vectors[held], ids[held], weights[held]),
        centroids,
        plan.config.training,
    )


def _run_trainer(
    model: InstructionModel,
    train: TuningExamples,
    validation: TuningExamples,
    config: EncoderTuningConfig,
    checkpoints: Path,
    say: Say,
    callbacks: Sequence[TrainerCallback],
) -> TrainerState:
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its hints name no setting of this project
    arguments = _arguments(config, checkpoints)
    # All that may be wrong with the settings is known by now: only one process says so.
    if processes.is_main():
        resume = last_checkpoint(checkpoints)
        processes.ask_for_help()
        processes.agree(0 if resume is None else checkpoint_step(resume))
    else:
        step = processes.agree(0)
        resume = checkpoints / f"checkpoint-{step}" if step else None
    if resume is not None:
        say(f"encoder: going on from {resume.name}")
    trainer = EncoderTrainer(
        head_learning_rate=config.head_learning_rate,
        patience=config.patience,
        say=say,
        model=TunableModel(model, config.ranking_weight, config.temperature),
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=Collator(model, config.rivals),
        callbacks=callbacks,
    )
    if is_adaptive(model.encoder):
        assert isinstance(model.encoder, PeftModel)  # noqa: S101 - for mypy
        trainer.add_callback(RankAllotment(model.encoder, resume))
    return trainer.learn(resume)


def _record(state: TrainerState, model: InstructionModel, config: EncoderTuningConfig) -> TuningRecord:
    at_best = log_of_best(state, "encoder_tuning")
    trained, parameters = trainable_parameters(model)
    return TuningRecord(
        method=config.method,
        parameters=parameters,
        trained=trained,
        trained_share=trained / parameters,
        epochs=float(state.epoch or 0),
        best_step=int(state.best_global_step or 0),
        steps=state.global_step,
        validation_loss=float(at_best["eval_loss"]),
        validation_top1_accuracy=float(at_best["eval_top1_accuracy"]),
        processes=processes.count(),
    )


def _arguments(config: EncoderTuningConfig, checkpoints: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    if config.precision == "bfloat16" and not (torch.cuda.is_bf16_supported() if gpu else _cpu_has_bfloat16()):
        raise ConfigError(
            "encoder_tuning.precision: bfloat16 needs a GPU that has it, or a CPU with avx512_bf16 or amx_bf16; "
            "set float32"
        )
    if config.precision == "float16" and not gpu:
        raise ConfigError("encoder_tuning.precision: float16 needs a GPU; set float32")
    if config.batch_size % processes.count():
        raise ConfigError(
            f"encoder_tuning.batch_size: {config.batch_size} texts cannot be shared out evenly among "
            f"{processes.count()} processes; set a multiple of {processes.count()}"
        )
    return training_arguments(
        checkpoints,
        config,
        config.batch_size // processes.count(),
        use_cpu=not gpu and (processes.count() > 1 or config.precision == "bfloat16"),  # else they insist on a GPU
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.encoder_learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        max_grad_norm=config.max_gradient_norm,
        optim={"adamw": "adamw_torch", "adafactor": "adafactor"}[config.optimizer],
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        ddp_find_unused_parameters=True,  # a BERT's pooler learns nothing
        ddp_timeout=int(processes.PATIENCE.total_seconds()),
    )


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; others would be slower with it than with float32."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # a torch without it cannot tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
