"""Marks in the live repository that say which publishes began and did not end: at work now, or killed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .files import sync_folder, write_atomically

PUBLISHING = ".publishing-"
"""`.publishing-<domain>-<number>`: holds the ensemble's config from before, nothing if there was none."""


@dataclass(frozen=True)
class Unfinished:
    """A publish that began and did not end.

    Attributes:
        domain: whose.
        number: the release that was to go live.
        before: the ensemble's config until then; None if the domain had none.
        path: of the mark.
    """

    domain: str
    number: int
    before: str | None
    path: Path

    def put_back(self, config: Path) -> None:
        """Let a file be the config from before: by a link, for which a full disk has room."""
        spare = config.with_name(f".{config.name}.before.tmp")
        spare.unlink(missing_ok=True)
        os.utime(self.path)  # Triton reloads what looks newer
        spare.hardlink_to(self.path)
        spare.replace(config)
        sync_folder(config.parent)


class Marks:
    """The marks of one live repository."""

    def __init__(self, folder: Path) -> None:
        """Take the live repository's folder; it need not exist yet."""
        self.folder = folder

    def add(self, domain: str, number: int, before: bytes | None) -> None:
        """Mark a publish as begun, durably, before anything of it is there."""
        write_atomically(self.folder / f"{PUBLISHING}{domain}-{number}", before or b"")

    def all(self) -> list[Unfinished]:
        """The publishes that began and did not end."""
        found = []
        for path in sorted(self.folder.glob(f"{PUBLISHING}*")):
            domain, _, number = path.name.removeprefix(PUBLISHING).rpartition("-")
            found.append(Unfinished(domain, int(number), path.read_text(encoding="utf-8") or None, path))
        return found

    def find(self, domain: str) -> list[Unfinished]:
        """Those of a domain."""
        return [one for one in self.all() if one.domain == domain]

    def remove(self, domain: str, number: int | None = None) -> None:
        """The publishes of a domain have ended, or one of them."""
        for one in self.find(domain):
            if number in {None, one.number}:
                one.path.unlink()
