"""Teaches an encoder with fewer layers to do what a run's whole encoder does, on texts without labels."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import TrainerState

from training import processes
from training.adapters import trainable_parameters
from training.atomic import new_folder
from training.dataset import Dataset
from training.distillation_config import DistillationConfig
from training.distillation_examples import DistillationCollator, DistillationExamples, Student, distillation_texts
from training.distillation_teacher import check_labels
from training.embedding_cache import EmbeddingCache
from training.encoder_source import BOTTLENECK_SETTINGS, EncoderSource, weights_sha256
from training.errors import ConfigError, TrainingError
from training.model import InstructionModel
from training.plan import Plan
from training.pruning import kept_layers, layer_list, pruned
from training.run import TOKENIZER_FILES, Run, copy_files
from training.tuning_folder import forget, only_one
from training.tuning_trainer import EncoderTrainer, last_checkpoint, log_of_best, training_arguments

Say = Callable[[str], None]
RESULT = "distillation.json"


@dataclass(frozen=True)
class DistillationRecord:
    """How the student was made. `layers` are the teacher's that it keeps, the parameters those of the encoders.

    `validation_agreement` is the share of validation texts whose best label is the teacher's, read by its head.
    """

    teacher: str
    teacher_layers: int
    layers: list[int]
    teacher_parameters: int
    parameters: int
    trained: int
    texts: int
    epochs: float
    best_step: int
    steps: int
    validation_loss: float
    validation_agreement: float


def distil_encoder(plan: Plan, teacher: Run, dataset: Dataset, say: Say) -> tuple[EncoderSource, DistillationRecord]:
    """Prune the teacher's encoder, teach the rest, and return it; it lies in the plan's tuning folder.

    A distillation that was cut off goes on from its last checkpoint, to the same result; one that is done is used
    again. Equal inputs give equal bytes on the same CPU with the same number of threads.

    Raises:
        ConfigError: Labels or layers are not the teacher's, it has bottleneck adapters, or there are several processes.
        EncoderError: The encoder cannot be pruned.
        TrainingError: The loss is not finite, the folder cannot be written, or another training works in it.
    """
    if (teacher.path / "encoder" / BOTTLENECK_SETTINGS).is_file():
        raise ConfigError("distillation.teacher: its bottleneck adapters cannot be pruned; name a run tuned otherwise")
    if processes.count() > 1:
        raise ConfigError("distillation runs in one process; start it without accelerate launch")
    folder = (plan.tuning_folder / "encoder").resolve()
    try:
        with only_one(plan.tuning_folder):
            if (folder / RESULT).is_file():
                say("encoder: distilled before, used again")
            else:
                _distil(plan, teacher, dataset, folder, say)
            record = DistillationRecord(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be used ({error.strerror}); free some space or check its rights"
        ) from None
    return EncoderSource(folder, weights_sha256(folder)), record


def forget_distillation(plan: Plan) -> None:
    """Remove the plan's tuning folder, once the run holds the student."""
    forget(plan.tuning_folder)


def _distil(plan: Plan, teacher: Run, dataset: Dataset, folder: Path, say: Say) -> None:
    config = plan.config.distillation
    assert config is not None  # noqa: S101 - for mypy: there is no teacher without it
    check_labels(teacher, dataset.labels)
    model = teacher.load_model()
    total = len(layer_list(model.encoder)[1])
    kept = kept_layers(config.layers, total)
    texts, held = distillation_texts(dataset, config.texts, config.seed)
    examples = _examples(plan, teacher, model, texts, held)
    teacher_parameters = model.encoder.num_parameters()
    model.encoder = pruned(model.encoder, kept)
    model.requires_grad_(False)
    layer_list(model.encoder)[1].requires_grad_(True)
    trained, _ = trainable_parameters(model)
    say(
        f"encoder: keeps the layers {list(kept)} of {teacher.run_id}'s {total}; {trained:,} parameters learn on "
        f"{len(texts):,} texts without labels (top-1: as often the label is the teacher's)"
    )
    started = time.monotonic()
    state = _train(model, examples, config, folder.parent / "checkpoints", say)
    at_best = log_of_best(state, "distillation")
    say(f"encoder: best at step {state.best_global_step} of {state.global_step}, {time.monotonic() - started:.0f} s")
    record = DistillationRecord(
        teacher=teacher.run_id,
        teacher_layers=total,
        layers=list(kept),
        teacher_parameters=teacher_parameters,
        parameters=model.encoder.num_parameters(),
        trained=trained,
        texts=len(texts),
        epochs=float(state.epoch or 0),
        best_step=int(state.best_global_step or 0),
        steps=state.global_step,
        validation_loss=float(at_best["eval_loss"]),
        validation_agreement=float(at_best["eval_top1_accuracy"]),
    )
    with new_folder(folder) as temporary:
        model.encoder.cpu().save_pretrained(temporary)
        copy_files(teacher.path / "encoder", temporary, TOKENIZER_FILES)
        (temporary / RESULT).write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
    shutil.rmtree(folder.parent / "checkpoints")


def _examples(
    plan: Plan, teacher: Run, model: InstructionModel, texts: list[str], held: list[str]
) -> tuple[DistillationExamples, DistillationExamples]:
    """The texts with the teacher's vectors, which are made once and kept in the embedding cache."""
    record = teacher.manifest.encoder
    cache = EmbeddingCache.below(plan.var, teacher.encoder, record.pooling, record.max_length)
    both = [*texts, *held]
    with tqdm(total=len(set(both)), desc="teacher", unit="text", disable=None) as bar:
        vectors = cache.embed(model, both, plan.config.training.embedding_batch_size, bar.update)
    with torch.no_grad():
        labels = model.head(torch.from_numpy(vectors)).argmax(dim=1).tolist()
    ids = [encoding.ids for encoding in model.tokenizer.encode_batch(both)]
    taught, validated = slice(0, len(texts)), slice(len(texts), None)
    return (
        DistillationExamples(ids[taught], vectors[taught], labels[taught]),
        DistillationExamples(ids[validated], vectors[validated], labels[validated]),
    )


def _train(
    model: InstructionModel,
    examples: tuple[DistillationExamples, DistillationExamples],
    config: DistillationConfig,
    checkpoints: Path,
    say: Say,
) -> TrainerState:
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its hints name no setting of this project
    transformers.set_seed(config.seed)
    resume = last_checkpoint(checkpoints)
    if resume is not None:
        say(f"encoder: going on from {resume.name}")
    arguments = training_arguments(
        checkpoints,
        config,
        config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        optim="adamw_torch",
    )
    trainer = EncoderTrainer(
        head_learning_rate=config.learning_rate,  # of nothing: the head is the teacher's and stays so
        patience=config.patience,
        say=say,
        model=Student(model, config.temperature, config.label_weight),
        args=arguments,
        train_dataset=examples[0],
        eval_dataset=examples[1],
        data_collator=DistillationCollator(model),
    )
    return trainer.learn(resume)
