"""What is asked: a domain's real instructions, and what makes an answer right."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from instructrec_client import Recommendations
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import LoadTestError

__all__ = ["Query", "WrongAnswer", "check_answer", "expected_release", "items_due", "read_workload", "shuffled"]

MANIFEST = "manifest.json"
"""Beside a release's own instructions."""

Thing = TypeVar("Thing")


class Query(BaseModel):
    """One instruction with its history.

    Attributes:
        text: The instruction.
        history: Item ids, newest first.
    """

    # Other keys are left alone, so that a run's instructions.jsonl is a workload as it stands.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    text: str = Field(min_length=1, pattern=r"\S")
    history: list[str] = []


class WrongAnswer(Exception):  # noqa: N818 - reads as a failure's name in reports
    """The server answered, but not what the contract promises."""


def read_workload(path: Path) -> list[Query]:
    """Read a text file with a JSON value a line: a string, or an object with `text` and, if there is one, `history`.

    Raises:
        LoadTestError: The file cannot be read, holds nothing, or a line is neither; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also split inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path}: cannot read the instructions: {error}") from error
    queries = [_query(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not queries:
        raise LoadTestError(f"{path}: no instruction in it: give one JSON value a line")
    return queries


def _query(line: str, where: str) -> Query:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise LoadTestError(f"{where}: not JSON ({error.msg}): write a string or an object with `text`") from error
    try:
        return Query.model_validate({"text": value} if isinstance(value, str) else value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "value"
        raise LoadTestError(f"{where}: {field}: {first['msg']}") from error


def shuffled(things: Sequence[Thing]) -> list[Thing]:
    """Return all of them in a random order, the same every time: neighbours in a workload are alike."""
    return random.Random(0).sample(things, len(things))  # noqa: S311 - an order, not a secret


def items_due(instructions: Path, k: int) -> int:
    """How many items answer a request for `k`: as many, or all of the catalogue.

    Where the instructions are a release's own, the manifest beside them says how large its catalogue is; else it is
    taken to be large enough.

    Raises:
        LoadTestError: The manifest does not say so.
    """
    items = _in_manifest(instructions, "items", "how many items there are")
    return k if items is None else min(k, items)


def expected_release(instructions: Path) -> str | None:
    """The release whose own instructions these are, as its answers call it; None where they are of no release.

    Raises:
        LoadTestError: The manifest beside them does not say so.
    """
    release = _in_manifest(instructions, "release", "which release this is")
    return None if release is None else str(release)


def _in_manifest(instructions: Path, key: str, what: str) -> int | None:
    path = instructions.parent / MANIFEST
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_bytes())[key])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadTestError(f"{path}: does not say {what}: export the release again") from error


def check_answer(answer: Recommendations, due: int) -> None:
    """Check an answer that the client could read.

    Args:
        answer: The answer.
        due: How many items it has to have, from `items_due`.

    Raises:
        WrongAnswer: It has fewer or more items, an item twice, a score that is not a number, or rising scores.
    """
    if len(answer) != due:
        raise WrongAnswer(f"{len(answer)} items where {due} are right")
    scores = [item.score for item in answer]
    if not all(map(math.isfinite, scores)):
        raise WrongAnswer("a score is not a finite number")
    if _rises(scores):
        raise WrongAnswer("a score is above the one before it")
    if len({item.item_id for item in answer}) < len(answer):
        raise WrongAnswer("an item is recommended twice")


def _rises(scores: Sequence[float]) -> bool:
    return any(later > earlier for earlier, later in itertools.pairwise(scores))
