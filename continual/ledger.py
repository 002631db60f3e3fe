"""What was tried with which feedback: the watermark, kept so that a crash repeats work and never skips any.

Feedback counts as learned once a release that learned it has gone live: what was made and never went live is made
anew, from what is live, together with what has come since. A derived run says how far it has read, so the live release
carries its watermark with it. The ledger adds what no run can say: which batch was refused, and which release was live
once and was gone back from; its feedback is not learned a second time. A run that is trained afresh has learned nothing
yet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import write_atomically

from .errors import LedgerError

Outcome = Literal["released", "refused", "nothing usable", "set"]
KEPT = 1_000


class Attempt(BaseModel):
    """One reading of feedback.

    Attributes:
        at: when, ISO 8601 in UTC.
        outcome: a release was made, or the head was refused, or there was nothing to learn from; "set": a person
            set the watermark.
        base_run: the run whose head was started from.
        root: the trained run that this one was derived from, by way of others or not.
        since, until: the sequence numbers of the feedback, `since` excluded.
        settings: fingerprint of the section `continual`.
        run_id, release: what was made, if anything.
        reason: why not, if nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    outcome: Outcome
    base_run: str
    root: str
    since: int = Field(ge=0)
    until: int = Field(ge=0)
    settings: str
    run_id: str | None = None
    release: int | None = None
    reason: str | None = None


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    attempts: tuple[Attempt, ...] = ()


class Ledger:
    """The attempts of one domain, oldest first, in one small file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist yet."""
        self.path = path

    def attempts(self) -> tuple[Attempt, ...]:
        """All that is remembered, oldest first.

        Raises:
            LedgerError: the file is damaged.
        """
        try:
            return _Content.model_validate_json(self.path.read_bytes()).attempts
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            what = error.strerror if isinstance(error, OSError) else "damaged, or of another version"
            raise LedgerError(
                f"{self.path}: cannot be read ({what}); move it away, and tuning goes on from what the live release "
                "has learned"
            ) from None

    def add(self, attempt: Attempt) -> None:
        """Remember one more, durably.

        Raises:
            LedgerError: the file is damaged or cannot be written.
        """
        content = _Content(attempts=(*self.attempts(), attempt)[-KEPT:])
        try:
            write_atomically(self.path, content.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be written ({error.strerror}); free some space") from None

    def watermark(self, learned: int, lineage: Sequence[str], went_live: Collection[int]) -> int:
        """The sequence number up to which feedback counts as learned.

        Args:
            learned: how far the run that is started from says that it has read.
            lineage: that run's id, its parent's and so on to the one that was trained.
            went_live: the numbers of the releases that were ever live.
        """
        mark = learned
        for attempt in self.attempts():
            if attempt.outcome == "set":
                mark = attempt.until
            elif attempt.run_id in lineage or (attempt.root == lineage[-1] and attempt.release in went_live):
                mark = max(mark, attempt.until)
        return mark

    def same(self, base_run: str, since: int, until: int, settings: str) -> Attempt | None:
        """The newest attempt with the very same head, feedback and settings, if any."""
        for attempt in reversed(self.attempts()):
            inputs = (attempt.base_run, attempt.since, attempt.until, attempt.settings)
            if attempt.outcome != "set" and inputs == (base_run, since, until, settings):
                return attempt
        return None
