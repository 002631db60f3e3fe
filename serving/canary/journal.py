"""What became of canaries: when which came up, and how it ended, on what evidence."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..line_journal import LineJournal, now

Action = Literal["up", "share", "promoted", "dropped", "taken down", "measured"]


class CanaryEvent(BaseModel):
    """One line.

    Attributes:
        at: when, ISO 8601 in UTC.
        release: the canary's.
        action: what happened.
        share: of the people, from then on.
        reason: why, in words and numbers.
        requests: so many, at most, were sent to each of the two for it: nobody's requests.
        failures: so many of those, at most, failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    release: int
    action: Action
    share: float
    reason: str = ""
    requests: int = 0
    failures: int = 0


class CanaryJournal(LineJournal[CanaryEvent]):
    """The canaries of a domain."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist yet."""
        super().__init__(path, CanaryEvent)

    def events(self) -> list[CanaryEvent]:
        """All of them, oldest first."""
        return self.lines()

    def sent(self, release: int, since: datetime.datetime) -> tuple[int, int]:
        """Of a canary since a moment: so many requests, at most, were sent to each of the two, and so many failed."""
        lines = [
            one for one in self.events() if one.release == release and datetime.datetime.fromisoformat(one.at) >= since
        ]
        return sum(one.requests for one in lines), sum(one.failures for one in lines)

    def write(self, release: int, action: Action, share: float, reason: str = "", **more: int) -> None:
        """Add a line, durably.

        Args:
            release: the canary's.
            action: what happened.
            share: of the people.
            reason: why.
            more: `requests` and `failures`.

        Raises:
            PublishError: the file cannot be written.
        """
        self.append(CanaryEvent(at=now(), release=release, action=action, share=share, reason=reason, **more))
