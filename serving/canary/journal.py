"""What became of canaries: when which came up, and how it ended, on what evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..line_journal import LineJournal, now

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


class CanaryJournal(LineJournal[CanaryEvent]):
    """The canaries of a domain."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist yet."""
        super().__init__(path, CanaryEvent)

    def events(self) -> list[CanaryEvent]:
        """All of them, oldest first."""
        return self.lines()

    def write(self, release: int, action: Action, share: float, reason: str = "") -> None:
        """Add a line, durably.

        Raises:
            PublishError: the file cannot be written.
        """
        self.append(CanaryEvent(at=now(), release=release, action=action, share=share, reason=reason))
