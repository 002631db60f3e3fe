"""Marks in the live repository that say which publishes began and did not end: at work now, or killed.

Beside a mark, from just before the switch on, lies what the journal is to say of the publish.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import PublishError
from .files import sync_folder, write_atomically

PUBLISHING = ".publishing-"
"""`.publishing-<domain>-<number>`: holds the ensemble's config from before, nothing if there was none."""
UNWRITTEN = ".journal-"
"""`.journal-<domain>-<number>`: an `Intent`; not in the mark itself, of which the config from before is a link."""


class Intent(BaseModel):
    """What the journal is to say of a publish once its release has answered.

    Attributes:
        verb: what asked for it.
        forced: the gates that the release did not pass and is let through all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: str
    forced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfinished:
    """A publish that began and did not end.

    Attributes:
        domain: whose.
        number: the release that was to go live.
        before: the ensemble's config until then; None if the domain had none.
        path: of the mark.
        intent: None if the publish did not come to its switch.
    """

    domain: str
    number: int
    before: str | None
    path: Path
    intent: Intent | None = None

    def put_back(self, config: Path) -> None:
        """Let a file be the config from before: by a link, for which a full disk has room; where none can be, anew."""
        spare = config.with_name(f".{config.name}.before.tmp")
        spare.unlink(missing_ok=True)
        os.utime(self.path)  # Triton reloads what looks newer
        try:
            spare.hardlink_to(self.path)
        except OSError:  # not every volume has hard links
            write_atomically(config, self.path.read_bytes())
            return
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

    def intend(self, domain: str, number: int, intent: Intent) -> None:
        """Keep, durably, what the journal is to say of a publish that is about to switch; without a mark, nothing.

        Raises:
            PublishError: it cannot be written.
        """
        path = self._unwritten(domain, number)
        try:
            if any(one.number == number for one in self.find(domain)):
                write_atomically(path, intent.model_dump_json().encode())
        except OSError as error:
            raise PublishError(f"cannot write {path}: {error.strerror or error}") from None

    def _unwritten(self, domain: str, number: int) -> Path:
        return self.folder / f"{UNWRITTEN}{domain}-{number}"

    def _intent(self, domain: str, number: int) -> Intent | None:
        try:
            return Intent.model_validate_json(self._unwritten(domain, number).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def all(self) -> list[Unfinished]:
        """The publishes that began and did not end."""
        found = []
        for path in sorted(self.folder.glob(f"{PUBLISHING}*")):
            domain, _, digits = path.name.removeprefix(PUBLISHING).rpartition("-")
            number, before = int(digits), path.read_text(encoding="utf-8") or None
            found.append(Unfinished(domain, number, before, path, self._intent(domain, number)))
        return found

    def find(self, domain: str) -> list[Unfinished]:
        """Those of a domain."""
        return [one for one in self.all() if one.domain == domain]

    def remove(self, domain: str, number: int | None = None) -> None:
        """The publishes of a domain have ended, or one of them."""
        for one in self.find(domain):
            if number in {None, one.number}:
                self._unwritten(domain, one.number).unlink(missing_ok=True)  # first: without its mark nobody would
                one.path.unlink()
