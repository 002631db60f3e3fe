"""What was tried with which feedback: the watermark, kept so that a crash repeats work and never skips any.

Feedback counts as learned once a release that learned it has gone live: what was made and never went live is made
anew, from what is live, together with what has come since. A derived run says how far it has read, so the live release
carries its watermark with it. The ledger adds what no run can say: which batch was refused, and what a release learned
that was live once and was gone back from; its feedback is not learned a second time. What a release learned that
another was published over, without having been derived from it, is. A run that is trained afresh has learned nothing
yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import write_atomically
from serving.journal import Publication

from .errors import LedgerError

Outcome = Literal["released", "refused", "nothing usable", "set"]
DECIDING = ("released", "set")
"""What the watermark follows from: kept for ever. A release takes thousands of times more of the disk than its line."""
KEPT = 1_000
"""Attempts of which nothing came, of the newest."""


class Attempt(BaseModel):
    """One reading of feedback.

    Attributes:
        at: when, ISO 8601 in UTC.
        outcome: a release was made, or the head was refused, or there was nothing to learn from; "set": the watermark
            was set, by a person or, for a `reason`, because nothing came of a full batch.
        base_run: the run whose head was started from.
        root: the trained run that this one was derived from, by way of others or not.
        since, until: the sequence numbers of the feedback, `since` excluded.
        settings: fingerprint of the section `continual`.
        digest: of the events that were read; None where none were, or an older version read them.
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
    digest: str | None = None
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
        attempts = (*self.attempts(), attempt)
        without = [place for place, one in enumerate(attempts) if one.outcome not in DECIDING]
        cut = set(without[:-KEPT])
        content = _Content(attempts=tuple(one for place, one in enumerate(attempts) if place not in cut))
        try:
            write_atomically(self.path, content.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be written ({error.strerror}); free some space") from None

    def watermark(self, learned: int, lineage: Collection[str], root: str, passed: Collection[int]) -> int:
        """The sequence number up to which feedback counts as learned.

        Args:
            learned: how far the run that is started from says that it has read.
            lineage: that run's id, its parent's and so on, as far as they are known.
            root: the id of the trained run that it was derived from.
            passed: the numbers of the releases whose feedback counts as learned though it was derived from none of
                them: those that were gone back from.
        """
        mark = learned
        for attempt in self.attempts():
            same_root = attempt.root == root
            if attempt.outcome == "set":
                # What a person left out stays out; what was left behind for a reason may do for another training.
                mark = attempt.until if same_root or attempt.reason is None else mark
            elif attempt.run_id in lineage or (same_root and attempt.release in passed):
                mark = max(mark, attempt.until)
        return mark

    def same(self, base_run: str, since: int, until: int, settings: str, digest: str) -> Attempt | None:
        """The newest attempt with the very same head, feedback and settings, if any."""
        wanted = (base_run, since, until, settings, digest)
        for attempt in reversed(self.attempts()):
            inputs = (attempt.base_run, attempt.since, attempt.until, attempt.settings, attempt.digest)
            if attempt.outcome != "set" and inputs == wanted:
                return attempt
        return None


def gone_back_from(publications: Iterable[Publication]) -> set[int]:
    """The numbers of the releases that an older one answers in place of, or did until another was published.

    Args:
        publications: of the domain, oldest first.
    """
    live: set[int] = set()
    gone: set[int] = set()
    for publication in publications:
        gone.discard(publication.release)
        gone |= {number for number in live if number > publication.release}
        live.add(publication.release)
    return gone
