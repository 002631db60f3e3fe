"""A release's manifest: what is in it, where it came from, and the sha256 of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from .engines.fingerprint import Fingerprint
from .errors import ReleaseError
from .files import sha256_of, write_atomically

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


class Step(BaseModel):
    """One model of the ensemble, as a release pins it.

    Attributes:
        model: the name Triton knows it by, `<domain>_<step>`.
        version: its version folder: the number of the release that first carried this content.
        digest: sha256 over its config and the files of its version folder; equal digests are the same step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: int = Field(ge=1)
    digest: str


class EncoderOrigin(BaseModel):
    """Where a release's encoder graph comes from; another release may carry the very same.

    Attributes:
        fingerprint: of all that the graph was made of: the run's encoder, the precision, the export's settings and
            code.
        release: the release that it was made for.
        texts: sha256 of the instructions that it was held against torch on for this release.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    release: int = Field(ge=1)
    texts: str


class Manifest(BaseModel):
    """What a release is.

    Attributes:
        schema_version: of this file.
        domain: the ensemble's name.
        release: the release's number, from 1.
        created: when, ISO 8601 in UTC.
        run_id: the run whose weights these are.
        run_fingerprint: of the data, config and encoder that made the run.
        export_fingerprint: of everything that determined the release's content; exporting the same again makes no new
            release.
        precision: of the encoder's graph.
        export_settings: what else its graphs were made and verified by, so that a release after it can be made alike;
            empty in releases from before this was written down.
        items: how many the catalogue has.
        labels: how many the head knows.
        metrics: of the run, for the history of releases.
        verification: by graph and by part beside it, each check with the figure measured; the last graph passed and is
            the one that is served, INT8 recipes before it were tried and rejected.
        steps: the models, by step name.
        encoder: where the encoder graph comes from; None in releases from before this was written down.
        engine: where the encoder's TensorRT engine was built, if the release has one.
        files: sha256 by path below the release folder, of every file but this one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    domain: str
    release: int = Field(ge=1)
    created: str
    run_id: str
    run_fingerprint: str
    export_fingerprint: str
    precision: str
    export_settings: dict[str, Any] = {}
    items: int
    labels: int
    metrics: dict[str, Any]
    verification: dict[str, dict[str, float]]
    steps: dict[str, Step]
    encoder: EncoderOrigin | None = None
    engine: Fingerprint | None = None
    files: dict[str, str]

    @classmethod
    def read(cls, release_folder: Path) -> Manifest:
        """Read a release folder's manifest.

        Raises:
            ReleaseError: it is missing, not valid, or written by a newer version.
        """
        path = release_folder / MANIFEST_NAME
        try:
            raw = from_json(path.read_bytes())
            if isinstance(raw, dict) and raw.get("schema_version") != SCHEMA_VERSION:
                raise ReleaseError(
                    f"{path} has schema version {raw.get('schema_version')}; this version reads {SCHEMA_VERSION}: "
                    "export the release again"
                )
            return cls.model_validate(raw)
        except FileNotFoundError:
            raise ReleaseError(
                f"{release_folder} has no {MANIFEST_NAME}: it is no release; run `make export`"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ReleaseError(f"{path}: {where}: {first['msg']}; export the release again") from None
        except ValueError as error:
            raise ReleaseError(f"{path}: not JSON ({error}); export the release again") from None
        except OSError as error:
            raise ReleaseError(f"{path} cannot be read: {error.strerror or error}") from None

    def write(self, release_folder: Path) -> None:
        """Write the manifest into a release folder, in one step."""
        write_atomically(release_folder / MANIFEST_NAME, self.model_dump_json(indent=1).encode() + b"\n")

    def verify(self, release_folder: Path) -> None:
        """Hold every file against its sha256.

        Raises:
            ReleaseError: a file is missing, changed, or not in the manifest.
        """
        present = files_below(release_folder)
        for name, expected in self.files.items():
            if name not in present:
                raise ReleaseError(f"{release_folder}: {name} is missing; export the release again")
            try:
                digest = sha256_of(release_folder / name)
            except OSError as error:
                raise ReleaseError(f"{release_folder}: {name} cannot be read: {error.strerror or error}") from None
            if digest != expected:
                raise ReleaseError(
                    f"{release_folder}: {name} does not have the sha256 of the manifest; export the release again"
                )
        extra = sorted(present - set(self.files))
        if extra:
            raise ReleaseError(
                f"{release_folder}: {extra[0]} is not in the manifest; remove it or export the release again"
            )

    def digests_below(self, folder: str) -> dict[str, str]:
        """The sha256 of every file below a folder of the release, by path relative to that folder."""
        start = f"{folder}/"
        return {name[len(start) :]: digest for name, digest in self.files.items() if name.startswith(start)}


def files_below(folder: Path) -> set[str]:
    """Relative paths of all files below a release folder, its manifest left out."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {MANIFEST_NAME}
