"""What a dataset is made of, as typed values. docs/datasets.md is the contract; dataset_loading.py reads it."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Item:
    """One item of the catalogue. `prior` is its popularity or quality: finite, not negative, 0 when not given.

    `released` is when it came out, in seconds since 1970-01-01 UTC (negative before), None when not known.
    """

    item_id: str
    title: str
    text: str
    label: str
    prior: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)
    released: float | None = None


@dataclass(frozen=True)
class Instruction:
    """A person's words and what answers them. `relevant` holds the grades as given (item id to grade), often none."""

    instruction_id: str
    text: str
    label: str
    attributes: Mapping[str, str]
    relevant: Mapping[str, float]
    split: Split


@dataclass(frozen=True)
class Interaction:
    """One event: what a person did with an item. `timestamp` is in seconds since 1970-01-01 UTC."""

    user_id: str
    item_id: str
    value: float
    timestamp: float


@dataclass(frozen=True)
class AugmentedInstruction:
    """An instruction to learn from that no person labelled: made of an item, or labelled by a model.

    It counts `weight` where a given one counts 1. `ranked` says that it tells which items answer it.
    """

    instruction: Instruction
    weight: float
    ranked: bool


def wording(text: str) -> str:
    """What is the same in texts that differ in case and spaces alone, which many an encoder does not see."""
    return " ".join(text.casefold().split())


def says_one_of(item: Item, held_out: Set[str]) -> bool:
    """Whether an item's text or title is one of some texts, which are as `wording` has them."""
    return bool(held_out) and not held_out.isdisjoint((wording(item.text), wording(item.title)))


@dataclass(frozen=True)
class Dataset:
    """A whole dataset. `files` maps each file to its sha256; `notes` says what was chosen where the data was silent.

    `unlabelled` are texts of instructions that nobody labelled, none of them held out; `augmentation` is what was made
    of them and of the items, which belongs to no split. `held_out` are the texts (as `wording` has them) of all
    validation and test instructions that people gave, also of those that few shots leave out: nothing may learn them
    from an item.
    """

    source: str
    items: tuple[Item, ...]
    instructions: tuple[Instruction, ...]
    interactions: tuple[Interaction, ...]
    weak_labels: bool
    has_prior: bool
    fingerprint: str
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    augmentation: tuple[AugmentedInstruction, ...] = ()
    held_out: frozenset[str] = frozenset()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of items and instructions in sorted order; a label's place is its id."""
        return tuple(sorted({item.label for item in self.items} | {asked.label for asked in self.instructions}))

    def split(self, name: Split) -> list[Instruction]:
        """The instructions of one split, in file order."""
        return [instruction for instruction in self.instructions if instruction.split == name]
