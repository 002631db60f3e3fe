"""What is learned from: a dataset and, with it, synthetic instructions and those that a teacher labelled."""

from collections.abc import Callable
from dataclasses import replace

from training.dataset import AugmentedInstruction, Dataset, wording
from training.embedding_cache import EmbeddingCache
from training.label_names import LabelNames
from training.plan import Plan
from training.pseudo_labels import pseudo_label
from training.shots import NO_VALIDATION, ShotsRecord, limit_shots, note_stand_ins
from training.synthetic import synthesise

HELD_OUT = 10  # each such synthetic instruction stands in for validation where there is none
Say = Callable[[str], None]


def prepare_dataset(plan: Plan, dataset: Dataset, say: Say) -> tuple[Dataset, ShotsRecord | None]:
    """What a run of `plan` learns from: `dataset` cut to its shots and augmented, and what the cut has kept.

    The same plan and dataset give the same in every process.
    """
    dataset, shots = limit_shots(dataset, plan.config)
    if shots is None:
        return augment(plan, dataset, say), None
    say(str(shots))
    dataset = augment(plan, dataset, say, stand_ins=shots.stand_ins > 0)
    if shots.stand_ins:
        shots = replace(shots, stand_ins=len(dataset.split("validation")))
    return dataset, shots


def augment(plan: Plan, dataset: Dataset, say: Say, *, stand_ins: bool = False) -> Dataset:
    """The dataset with synthetic instructions, and with those of its unlabelled ones that a teacher labels.

    Synthetic instructions that say a held-out one word for word are left out. Where the validation split is but
    `stand_ins`, some synthetic instructions take their place, and the notes say so.
    """
    made: list[AugmentedInstruction] = []
    if plan.source.synthetic is not None:
        made += synthesise(dataset, plan.source.synthetic)
        made = [one for one in made if wording(one.instruction.text) not in dataset.held_out]
        say(f"made {len(made):,} synthetic instructions of the catalogue")
    settings, teacher = plan.config.self_training, plan.self_training_teacher
    if settings is not None and teacher is not None:
        record = teacher.manifest.encoder  # not the student's, which may pool and cut otherwise
        cache = EmbeddingCache.below(plan.var, teacher.encoder, record.pooling, record.max_length)
        labelled = pseudo_label(dataset, teacher, settings, cache, plan.config.training.embedding_batch_size)
        by = f"run {teacher.run_id}{' and their own words' if settings.names else ''}"
        own = set(dataset.unlabelled)
        found = sum(one.instruction.text in own for one in labelled)
        say(f"{by} labelled {found:,} of {len(own):,} unlabelled instructions")
        if settings.names:
            say(f"{len(labelled) - found:,} more are texts of these with the name of another label")
            made = _without_contradictions(made, dataset, say)
        made += labelled
    if stand_ins and any(one.ranked for one in made):
        # No person's words are there to validate on: made ones come nearer to them than the titles of items.
        held_out = [one for one in made if one.ranked][::HELD_OUT]
        texts = {one.instruction.text for one in held_out}
        made = [one for one in made if one.instruction.text not in texts]
        instructions = [one for one in dataset.instructions if one.split != "validation"]
        instructions += [replace(one.instruction, split="validation") for one in held_out]
        notes = [note for note in dataset.notes if not note.startswith(NO_VALIDATION)]
        notes.append(note_stand_ins(len(held_out), "synthetic instructions"))
        dataset = replace(dataset, instructions=tuple(instructions), notes=tuple(notes))
    return replace(dataset, augmentation=tuple(made))


def _without_contradictions(made: list[AugmentedInstruction], dataset: Dataset, say: Say) -> list[AugmentedInstruction]:
    """Those of `made` that name their own label, or none: titles call many things by the name of another label."""
    names = LabelNames.learn(dataset.items)
    kept = []
    for one in made:
        named = names.named(one.instruction.text)
        if not named or one.instruction.label in named:
            kept.append(one)
    say(f"{len(made) - len(kept):,} synthetic instructions that name another label than theirs are left out")
    return kept
