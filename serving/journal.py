"""The journal of a domain: which release went live when and on whose word, the only record of what answered."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .line_journal import LineJournal, now


class Publication(BaseModel):
    """One line of the journal: a release went live.

    Attributes:
        at: when, ISO 8601 in UTC.
        release: the release's number.
        before: what answered until then, None if nothing did.
        verb: "deploy", "rollback" or what else asked for it.
        forced: the gates that it did not pass and went live all the same; empty for an ordinary publication.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    release: int
    before: int | None
    verb: str
    forced: tuple[str, ...] = ()

    @property
    def moment(self) -> datetime.datetime:
        """When, as a moment."""
        return datetime.datetime.fromisoformat(self.at)


class Journal(LineJournal[Publication]):
    """The publications of a domain."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist yet."""
        super().__init__(path, Publication)

    def publications(self) -> list[Publication]:
        """All publications, oldest first."""
        return self.lines()

    def write(self, release: int, before: int | None, verb: str, forced: Sequence[str] = ()) -> Publication:
        """Add a publication, durably.

        Raises:
            PublishError: the file cannot be written.
        """
        publication = Publication(at=now(), release=release, before=before, verb=verb, forced=tuple(forced))
        self.append(publication)
        return publication

    def live_before(self, release: int) -> int | None:
        """What answered before a release did: the release to go back to. None if the journal does not know."""
        for publication in reversed(self.publications()):
            if publication.release == release:
                return publication.before
        return None

    def further_back(self, release: int) -> int | None:
        """What went live before a release and is not what `live_before` names, rollbacks aside. None if nothing did."""
        arrived = [one.release for one in reversed(self.publications()) if one.verb != "rollback"]
        earlier = arrived[arrived.index(release) + 1 :] if release in arrived else []
        return next((number for number in earlier if number not in {release, self.live_before(release)}), None)
