"""What became of canaries: when which came up, and how it ended, on what evidence."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import PublishError
from ..files import append_line

Action = Literal["up", "share", "promoted", "dropped", "taken down"]


class CanaryEvent(BaseModel):
    """One line.

    Attributes:
        at: when, ISO 8601 in UTC.
        release: the canary's.
        action: what happened.
        share: of the people, from then on.
        reason: why, in words and numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    release: int
    action: Action
    share: float
    reason: str = ""


class CanaryJournal:
    """Append-only, one JSON object a line; a line that a crash cut off does not count."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist yet."""
        self.path = path

    def events(self) -> list[CanaryEvent]:
        """All of them, oldest first."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(CanaryEvent.model_validate_json(line))
            except ValidationError:
                continue
        return found

    def write(self, release: int, action: Action, share: float, reason: str = "") -> None:
        """Add a line, durably.

        Raises:
            PublishError: the file cannot be written.
        """
        at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        event = CanaryEvent(at=at, release=release, action=action, share=share, reason=reason)
        try:
            append_line(self.path, event.model_dump_json())
        except OSError as error:
            raise PublishError(f"cannot write the journal {self.path}: {error.strerror or error}") from None
