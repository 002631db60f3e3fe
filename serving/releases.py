"""The numbered releases of a domain: `VAR/releases/<domain>/<n>/`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import ReleaseError
from .manifest import MANIFEST_NAME, Manifest

MODELS_FOLDER = "models"
"""Within a release: the models, laid out as in a Triton model repository."""
VERIFICATION_FILE = "verification.json"
"""Within a release: what was measured of its graphs, as verification.md shows it to people."""
INSTRUCTIONS_FILE = "instructions.jsonl"
"""Within a release: real instructions of the domain, for probes and load tests.

One `{"text": …, "history": [ids]}` a line.
"""


@dataclass(frozen=True)
class Release:
    """A release on disk.

    Attributes:
        path: its folder, named after its number.
    """

    path: Path

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest, read once.

        Raises:
            ReleaseError: it cannot be read, or is another release's.
        """
        manifest = Manifest.read(self.path)
        if manifest.release != self.number:
            raise ReleaseError(
                f"{self.path} holds the manifest of release {manifest.release}; "
                "a release is never renamed: export again"
            )
        return manifest

    @property
    def number(self) -> int:
        """Its number."""
        return int(self.path.name)

    @property
    def models(self) -> Path:
        """Its models, one folder each."""
        return self.path / MODELS_FOLDER

    def model_file(self, *parts: str) -> bytes:
        """A file below `models`, read once and held against the manifest, so that what is used is what was verified.

        Raises:
            ReleaseError: it is missing, or not what the manifest says.
        """
        path = self.models.joinpath(*parts)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"{path} cannot be read: {error.strerror or error}") from None
        if hashlib.sha256(content).hexdigest() != self.manifest.files.get(path.relative_to(self.path).as_posix()):
            raise ReleaseError(f"{path} does not have the sha256 of the manifest; export the release again")
        return content

    @property
    def instructions(self) -> Path:
        """Its sample of the domain's instructions."""
        return self.path / INSTRUCTIONS_FILE


class ReleaseStore:
    """Finds the releases of one domain; `export/` adds to them, nothing changes them."""

    def __init__(self, folder: Path) -> None:
        """Take the domain's releases folder; it need not exist yet."""
        self.folder = folder

    def numbers(self) -> list[int]:
        """The releases' numbers, ascending; half-written ones do not count."""
        if not self.folder.is_dir():
            return []
        whole = (path.parent.name for path in self.folder.glob(f"*/{MANIFEST_NAME}") if path.is_file())
        return sorted(int(name) for name in whole if re.fullmatch(r"[1-9][0-9]*", name))

    def open(self, number: int) -> Release:
        """The release of that number.

        Raises:
            ReleaseError: there is none.
        """
        if number not in (numbers := self.numbers()):
            known = ", ".join(map(str, numbers)) or "none"
            raise ReleaseError(f"there is no release {number} in {self.folder} (there: {known}); run `make export`")
        return Release(self.folder / str(number))

    def latest(self) -> Release:
        """The newest release.

        Raises:
            ReleaseError: there is none yet.
        """
        numbers = self.numbers()
        if not numbers:
            raise ReleaseError(f"there is no release in {self.folder}; run `make export`")
        return self.open(numbers[-1])
