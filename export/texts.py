"""The texts of a run that graphs are calibrated on and held against torch on.

Chosen by a hash of the text, never by place: files often come sorted, by label or by time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from export.errors import ExportError
from serving.steps.tokenization import MAX_INSTRUCTION_BYTES, is_blank
from training.dataset import Instruction, Item
from training.run import Run

__all__ = ["calibration_texts", "held_out_texts", "sample", "spread", "verified_instructions"]

Labelled = TypeVar("Labelled", Instruction, Item)


def verified_instructions(run: Run, count: int) -> list[Instruction]:
    """The held-out instructions that a release is verified on, of all labels and lengths.

    Raises:
        ExportError: The run has no instructions.
    """
    return spread(_held_out(run), count)


def held_out_texts(run: Run, count: int) -> list[str]:
    """The words of at most `count` held-out instructions, a random sample."""
    return [one.text for one in sample(_held_out(run), count)]


def calibration_texts(run: Run, count: int) -> list[str]:
    """Half training instructions, half item texts, of all labels and lengths.

    On the sample data 0.959 of the best 10 items stay, with instructions alone 0.952.
    """
    instructions = [one.text for one in spread(run.instructions("train"), count // 2)]
    return instructions + [item.text for item in spread(run.catalogue(), count - len(instructions))]


def sample(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    """At most `count` rows, those of least hash."""
    return sorted(rows, key=_key)[:count]


def spread(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    """At most `count` rows: one of each label, then of each in proportion; within a label, of each length in turn.

    The same rows give the same choice, in whatever order they come.
    """
    by_length = _in_turn(sorted(rows, key=_key), lambda one: (one.label, len(one.text).bit_length()))
    ranks, sizes = _ranks(by_length, lambda one: one.label), Counter(one.label for one in rows)
    shares = [rank / sizes[one.label] for rank, one in zip(ranks, by_length, strict=True)]
    order = sorted(range(len(shares)), key=shares.__getitem__)
    return [by_length[place] for place in order[:count]]


def _held_out(run: Run) -> list[Instruction]:
    """Instructions that tuning did not learn from; training ones if there are no others."""
    instructions = run.instructions()
    if not instructions:
        raise ExportError(
            f"{run.path}: has no instructions, so no release of it can be verified; add some to the dataset "
            "(docs/datasets.md) and train again"
        )
    # The served steps refuse a blank text and a very long one: it would say that a sound release does not answer.
    asked = [one for one in instructions if _is_answered(one.text)] or instructions
    return [one for one in asked if one.split != "train"] or asked


def _is_answered(text: str) -> bool:
    return len(text.encode()) <= MAX_INSTRUCTION_BYTES and not is_blank(text)


def _in_turn(rows: Sequence[Labelled], group: Callable[[Labelled], Hashable]) -> list[Labelled]:
    """The first of each group, then the second of each, and so on."""
    ranks = _ranks(rows, group)
    return [rows[place] for place in sorted(range(len(rows)), key=ranks.__getitem__)]


def _ranks(rows: Sequence[Labelled], group: Callable[[Labelled], Hashable]) -> list[int]:
    """How many rows of the same group come before each."""
    seen: Counter[Hashable] = Counter()
    found = []
    for one in rows:
        found.append(seen[group(one)])
        seen[group(one)] += 1
    return found


def _key(one: Instruction | Item) -> bytes:
    return hashlib.sha256(one.text.encode()).digest()
