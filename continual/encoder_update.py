"""Re-tunes the live encoder by LoRA on new examples and a replay of old ones: minutes where a head takes seconds.

The live encoder is the start, and what is learned is a low-rank difference to it, which weight decay pulls towards zero
(`LoraSettings`): both hold the new encoder near the live one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.config import DomainConfig
from training.dataset import AugmentedInstruction, Dataset, Instruction, Split
from training.embedding_cache import EmbeddingCache
from training.encoder_source import EncoderSource
from training.encoder_tuning import TuningRecord, forget_tuning, tune_encoder
from training.head import StartHead
from training.model import InstructionModel

from .feedback_examples import Batch, FeedbackExample
from .head_update import Vectors
from .old_skill import OldSkill, seen_by
from .settings import ContinualSettings


@dataclass(frozen=True)
class _Plan:
    """What `tune_encoder` has to know."""

    config: DomainConfig
    encoder: EncoderSource
    var: Path
    fingerprint: str

    @property
    def tuning_folder(self) -> Path:
        return self.var / "cache" / "tuning" / self.fingerprint


@dataclass(frozen=True)
class _Material(Dataset):
    """What is learned from; the labels are the head's, whether or not there still is an item of each."""

    of_head: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.of_head


@dataclass(frozen=True)
class TunedEncoder:
    """A new encoder, which lies in a folder of the cache until it is forgotten.

    Attributes:
        source: the encoder.
        record: how it was tuned.
        skill: the live release's head and examples, with this encoder's vectors, as torch makes them.
    """

    plan: _Plan
    source: EncoderSource
    record: TuningRecord
    skill: OldSkill

    def item_vectors(self) -> Vectors:
        """The vectors of the whole catalogue, float32 [N, H]."""
        skill, texts = self.skill, [item.text for item in self.skill.items]
        with tqdm(total=len(set(texts)), desc="embedding", unit="text", disable=None) as bar:
            return skill.cache.embed(skill.encoder, texts, skill.batch_size, bar.update)

    def forget(self, *, vectors: bool) -> None:
        """Remove the folder, and the cached vectors too where nothing will come of this encoder."""
        forget_tuning(self.plan)
        if vectors:
            self.skill.cache.path.unlink(missing_ok=True)


def tune_near_live(
    skill: OldSkill, batch: Batch, settings: ContinualSettings, var: Path, say: Callable[[str], None]
) -> TunedEncoder:
    """Tune the live encoder together with its head, and keep the best epoch on old validation and held-out feedback.

    A tuning that was cut off goes on from its last epoch, to the same result; one that is done is used again.

    Args:
        skill: of the live release.
        batch: what is new; it has something to learn from.
        settings: what is replayed, and how the encoder learns.
        var: where all that is produced lies.
        say: is given a line for each stage.

    Raises:
        ConfigError: the settings do not fit the encoder: one with bottleneck adapters takes no others.
        DivergedError: the loss is not finite.
        TrainingError: the folder cannot be written.
    """
    run, material = skill.run, _material(skill, batch, settings)
    tuning = settings.encoder_tuning(run.config.encoder_tuning)
    inputs = {
        "run": run.manifest.fingerprint,
        "encoder_tuning": tuning.fingerprinted(),
        "instructions": [vars(one) for one in material.instructions],
        "augmentation": [[one.instruction.text, one.instruction.label, one.weight] for one in material.augmentation],
    }
    plan = _Plan(
        config=run.config.model_copy(update={"encoder_tuning": tuning}),
        encoder=run.encoder,
        var=var,
        fingerprint=hashlib.sha256(json.dumps(inputs, sort_keys=True, default=dict).encode()).hexdigest(),
    )
    source, _, record = tune_encoder(plan, material, say, start=StartHead(skill.head.weight, skill.head.bias))
    of_run = run.manifest.encoder
    model = InstructionModel.from_folder(source.folder, of_run.pooling, of_run.max_length, len(run.labels))
    cache = EmbeddingCache.below(var, source, of_run.pooling, of_run.max_length)
    new = seen_by(skill, model, cache, settings)
    return TunedEncoder(plan, source, record, new)


def _material(skill: OldSkill, batch: Batch, settings: ContinualSettings) -> _Material:
    """The replay and what is new; the replay keeps the upper hand as in `update_head`.

    A batch's loss is the weighted mean over its texts, so that it is their ratio that counts: what is new is made
    lighter, so that the replay weighs at least `replay_ratio` times as much.
    """
    run = skill.run
    remembered = [
        _weighted(_instruction(f"remembered {row}", one.text, one.label, "train"), one.weight)
        for row, one in enumerate(skill.remembered)
        if not one.held_out
    ]
    replayed = float(skill.replay.weights.sum())
    wanted = settings.replay_ratio * sum(one.weight for one in batch.taught)
    lighter = min(1.0, replayed / wanted) if replayed and wanted else 1.0
    taught = [_weighted(_of_feedback(one, "train"), one.weight * lighter) for one in batch.taught]
    held_out = [_of_feedback(one, "validation") for one in batch.held_out or batch.taught]
    return _Material(
        source=run.manifest.dataset.source,
        items=skill.items,
        instructions=(*skill.train, *run.instructions("validation"), *held_out),
        interactions=(),
        weak_labels=False,
        has_prior=False,
        fingerprint="",
        files={},
        augmentation=(*remembered, *taught),
        of_head=run.labels,
    )


def _of_feedback(example: FeedbackExample, split: Split) -> Instruction:
    return _instruction(f"feedback {example.sequence}", example.text, example.label, split)


def _instruction(instruction_id: str, text: str, label: str, split: Split) -> Instruction:
    return Instruction(instruction_id, text, label, {}, {}, split)


def _weighted(instruction: Instruction, weight: float) -> AugmentedInstruction:
    return AugmentedInstruction(instruction, weight, ranked=False)
