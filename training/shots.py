"""Few-shot training: keeps a few labelled instructions a label, as if no others had ever been labelled."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from training.config import DomainConfig
from training.dataset import Dataset, Instruction, Item, Split
from training.head import sample_items

STAND_INS = 10  # item titles a label that stand in for a validation split without instructions
NO_VALIDATION = "no validation instruction is left: "  # how the note on what stands in begins


@dataclass(frozen=True)
class ShotsRecord:
    """What a draw kept: `train` of `train_of` instructions, `validation` likewise, and how many stand in for these."""

    shots: int
    train: int
    train_of: int
    validation: int
    validation_of: int
    stand_ins: int

    def __str__(self) -> str:
        """One line for people."""
        kept = f"train {self.train} of {self.train_of}, validation {self.validation} of {self.validation_of}"
        return f"instructions {kept} ({self.shots} a label)"


def limit_shots(dataset: Dataset, config: DomainConfig) -> tuple[Dataset, ShotsRecord | None]:
    """Cut the training and the validation split to `training.shots` instructions a label; None leaves them whole.

    `training.seed` draws, and a draw of few is part of the draw of more. The test split stays. What is left out is in
    the returned dataset nowhere, so neither early stopping nor the score weights see its labels. Where no validation
    instruction is left, titles of items that are no examples of head or encoder stand in for them.
    """
    shots, seed = config.training.shots, config.training.seed
    if shots is None:
        return dataset, None
    train = draw_shots(dataset.split("train"), shots, seed)
    validation = draw_shots(dataset.split("validation"), shots, seed)
    kept = {one.instruction_id for one in [*train, *validation]}
    instructions = [one for one in dataset.instructions if one.split == "test" or one.instruction_id in kept]
    stand_ins = [] if validation else _titles(dataset, config)
    notes = list(dataset.notes)
    if stand_ins:
        notes.append(note_stand_ins(len(stand_ins), "item titles"))
    cut = replace(dataset, instructions=(*instructions, *stand_ins), notes=tuple(notes))
    sizes = [len(dataset.split(split)) for split in ("train", "validation")]
    return cut, ShotsRecord(shots, len(train), sizes[0], len(validation), sizes[1], len(stand_ins))


def note_stand_ins(count: int, what: str) -> str:
    """The note that so many texts take the place of the validation split; `what` says what they are."""
    return f"{NO_VALIDATION}{count} {what} stand in, and validation metrics say nothing of people's words"


def draw_shots(instructions: Iterable[Instruction], shots: int, seed: int) -> list[Instruction]:
    """At most `shots` instructions of each label, those whose ids have the first hashes; the order is kept.

    The hash depends on id and seed alone: neither the order of the rows nor those of other labels matter.
    """
    candidates = list(instructions)
    left = Counter(dict.fromkeys((one.label for one in candidates), shots))
    drawn = set()
    for one in sorted(candidates, key=lambda one: _position(one.instruction_id, seed)):
        if left[one.label] > 0:
            left[one.label] -= 1
            drawn.add(one.instruction_id)
    return [one for one in candidates if one.instruction_id in drawn]


def _position(instruction_id: str, seed: int) -> tuple[bytes, str]:
    return hashlib.sha256(f"shots\0{seed}\0{instruction_id}".encode()).digest(), instruction_id


def _titles(dataset: Dataset, config: DomainConfig) -> list[Instruction]:
    """Titles of items as instructions that ask for their label, and for the attributes whose values they name."""
    settings, tuning, items, held = config.training, config.encoder_tuning, dataset.items, dataset.held_out
    taught = set(sample_items(items, settings.items_per_label, settings.seed, held))
    if tuning.method != "frozen":
        taught.update(sample_items(items, tuning.items_per_label, tuning.seed, held))
    seen = {items[row].title for row in taught}
    left = Counter(dict.fromkeys((item.label for item in items), STAND_INS))
    held_out = []
    for row in sample_items(items, len(items), settings.seed, held):
        if items[row].title not in seen and left[items[row].label] > 0:
            left[items[row].label] -= 1
            held_out.append(row)
    # A catalogue so small that all of it is taught leaves nothing to hold out.
    return [_as_instruction(items[row]) for row in held_out or sorted(taught)]


def _as_instruction(item: Item) -> Instruction:
    named = {name: value for name, value in item.attributes.items() if _names(item.title, value)}
    split: Split = "validation"
    return Instruction(f"title of {item.item_id}", item.title, item.label, named, {}, split)


def _names(title: str, value: str) -> bool:
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", title, re.IGNORECASE) is not None
