"""Adds to a dataset the instructions that are made for the tuning: synthetic ones, and those a teacher labelled."""

from collections.abc import Callable
from dataclasses import replace

from training.dataset import Dataset, MadeInstruction
from training.embedding_cache import EmbeddingCache
from training.plan import Plan
from training.pseudo_labels import pseudo_label
from training.synthetic import synthesise

HELD_OUT = 10  # each such synthetic instruction stands in for validation where there is none
Say = Callable[[str], None]


def with_made(plan: Plan, dataset: Dataset, say: Say, *, stand_ins: bool = False) -> Dataset:
    """The dataset with the instructions that are made of its catalogue and of its unlabelled instructions.

    Where the validation split is but `stand_ins`, made instructions take their place.
    """
    made: list[MadeInstruction] = []
    if plan.source.synthetic is not None:
        made += synthesise(dataset, plan.source.synthetic)
        say(f"made {len(made):,} synthetic instructions of the catalogue")
    settings, encoder = plan.config.self_training, plan.config.encoder
    if settings is not None and plan.labeller is not None:
        teacher = plan.labeller
        cache = EmbeddingCache(
            plan.var / "cache" / "embeddings", teacher.manifest.encoder.sha256, encoder.pooling, encoder.max_length
        )
        labelled = pseudo_label(dataset, teacher, settings, cache, plan.config.training.embedding_batch_size)
        say(f"run {teacher.run_id} labelled {len(labelled):,} of {len(dataset.unlabelled):,} unlabelled instructions")
        made += labelled
    if stand_ins and any(one.ranked for one in made):
        # No person's words are there to validate on: made ones come nearer to them than the titles of items.
        held_out = [one for one in made if one.ranked][::HELD_OUT]
        made = [one for one in made if one not in held_out]
        instructions = [one for one in dataset.instructions if one.split != "validation"]
        instructions += [replace(one.instruction, split="validation") for one in held_out]
        dataset = replace(dataset, instructions=tuple(instructions))
        say(f"{len(held_out)} synthetic instructions stand in for the validation split")
    return replace(dataset, made=tuple(made))
