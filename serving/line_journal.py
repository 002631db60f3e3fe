"""An append-only file of JSON objects, one a line, that survives a crash: what both journals are kept in."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import PublishError
from .files import append_line

Line = TypeVar("Line", bound=BaseModel)


def now() -> str:
    """The moment, ISO 8601 in UTC, in whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class LineJournal(Generic[Line]):
    """Lines of one kind; one that a crash cut off does not count."""

    def __init__(self, path: Path, kind: type[Line]) -> None:
        """Take the file; it need not exist yet."""
        self.path = path
        self._kind = kind

    def lines(self) -> list[Line]:
        """All of them, oldest first."""
        try:
            written = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in written:
            try:
                found.append(self._kind.model_validate_json(line))
            except ValidationError:
                continue
        return found

    def append(self, line: Line) -> None:
        """Add a line, durably.

        Raises:
            PublishError: the file cannot be written.
        """
        try:
            append_line(self.path, line.model_dump_json())
        except OSError as error:
            raise PublishError(f"cannot write the journal {self.path}: {error.strerror or error}") from None
