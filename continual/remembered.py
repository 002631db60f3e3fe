"""The feedback that a run's head has learned, kept with the run: a later turn must not forget it either.

It stays out of the run's instructions, and so out of every release: these are people's words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from training.errors import RunError
from training.run import Run

from .feedback_examples import FeedbackExample

FILE = "feedback.jsonl"
"""Its name in the folder of a derived run."""


@dataclass(frozen=True)
class Remembered:
    """Words that were learned from, or measured on.

    Attributes:
        text: the words, masked as the store has them.
        label: what they meant.
        weight: what they counted.
        held_out: whether they were measured on.
    """

    text: str
    label: str
    weight: float
    held_out: bool


def read_remembered(run: Run) -> tuple[Remembered, ...]:
    """What a run remembers; nothing if it, and what it was derived from, never learned feedback.

    Raises:
        RunError: the file is damaged, or names a label that the head does not know.
    """
    path = run.path / FILE
    try:
        # Of bytes, because the lines of a text also end at U+2028 and the like, which people's words may hold.
        rows = tuple(Remembered(**json.loads(line)) for line in path.read_bytes().splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); go back to another release, or train again") from None
    if unknown := {row.label for row in rows} - set(run.labels):
        raise RunError(f"{path}: the head does not know the label {min(unknown)!r}; train again")
    return rows


def with_new(known: Sequence[Remembered], new: Iterable[FeedbackExample], most: int) -> list[Remembered]:
    """The newest `most` of what is known and what is new; words with their label count once, with the last weight."""
    rows = {(one.text, one.label): one for one in known}
    for one in new:
        rows.pop((one.text, one.label), None)
        rows[one.text, one.label] = Remembered(one.text, one.label, one.weight, one.held_out)
    return list(rows.values())[-most:] if most else []


def as_bytes(rows: Iterable[Remembered]) -> bytes:
    """The content of the file."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
