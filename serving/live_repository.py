"""The live repository: the folder that Triton reads, changed so that it is whole at every instant.

A step's version folders live side by side (`<domain>_<step>/<version>/`); a release is what the ensemble's config pins. New version
folders are renamed into place first, the ensemble's config is replaced last, by a rename. So a crash at any point leaves the old release or the new one, and the
server can be restarted from the folder as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from .errors import PublishError
from .files import remove, rename_into_place, write_atomically
from .manifest import Step
from .releases import Release

CONFIG_NAME = "config.pbtxt"


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    """Parse a config.pbtxt.

    Raises:
        google.protobuf.text_format.ParseError: it is not a model config.
    """
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def format_config(config: model_config_pb2.ModelConfig) -> str:
    """Write a model config as config.pbtxt text."""
    return str(text_format.MessageToString(config))


@dataclass(frozen=True)
class LiveRelease:
    """What an ensemble's config in the live repository pins.

    Attributes:
        number: the release.
        versions: the pinned version of each step's model.
    """

    number: int
    versions: dict[str, int]


class LiveRepository:
    """Puts releases into the live repository and takes them out."""

    def __init__(self, folder: Path) -> None:
        """Take the folder that Triton reads; it need not exist yet."""
        self.folder = folder

    def domains(self) -> list[str]:
        """The ensembles that are live."""
        configs = self.folder.glob(f"*/{CONFIG_NAME}")
        return sorted(path.parent.name for path in configs if parse_config(path.read_text()).platform == "ensemble")

    def live_release(self, domain: str) -> LiveRelease | None:
        """What a domain's ensemble pins now, or None before its first release."""
        path = self.folder / domain / CONFIG_NAME
        if not path.is_file():
            return None
        config = parse_config(path.read_text(encoding="utf-8"))
        versions = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
        return LiveRelease(number=config.version_policy.specific.versions[0], versions=versions)

    def stage(self, release: Release) -> list[str]:
        """Bring a release's version folders and step configs in, beside what is live; nothing answers differently yet.

        Returns:
            The models whose versions changed, which a running server has to load.

        Raises:
            PublishError: the folder cannot be written (full, read-only).
        """
        live = self.live_release(release.manifest.domain)
        changed = []
        try:
            for step in release.manifest.steps.values():
                pinned = {live.versions[step.model]} if live and step.model in live.versions else set()
                if self._stage_step(release, step, keep=pinned):
                    changed.append(step.model)
            self._stage_folder(release.models / release.manifest.domain / str(release.number), release.manifest.domain)
        except OSError as error:
            raise PublishError(f"cannot write the live repository {self.folder}: {error.strerror or error}") from None
        return changed

    def _stage_step(self, release: Release, step: Step, keep: Iterable[int]) -> bool:
        source = release.models / step.model
        copied = self._stage_folder(source / str(step.version), step.model)
        for extra in source.glob("*/*"):  # warm-up data, which lies beside the versions
            if extra.is_file() and not extra.parent.name.isdecimal():
                self._replace_if_changed(self.folder / step.model / extra.parent.name / extra.name, extra.read_bytes())
        config = parse_config((source / CONFIG_NAME).read_text(encoding="utf-8"))
        config.version_policy.specific.versions.extend(sorted({*keep, step.version}))
        return self._replace_if_changed(self.folder / step.model / CONFIG_NAME, format_config(config).encode()) or copied

    def _stage_folder(self, source: Path, model: str) -> bool:
        """Copy one version folder in, unless it is there; it appears whole or not at all."""
        final = self.folder / model / source.name
        if final.is_dir():
            return False
        incoming = final.with_name(f".incoming-{source.name}")
        remove(incoming)
        shutil.copytree(source, incoming)
        rename_into_place(incoming, final)
        return True

    @staticmethod
    def _replace_if_changed(path: Path, content: bytes) -> bool:
        """Leave an unchanged file alone: Triton reloads a model, all its versions, if any file of it looks newer."""
        if path.is_file() and path.read_bytes() == content:
            return False
        write_atomically(path, content)
        return True

    def switch(self, release: Release) -> str | None:
        """Re-point the domain's ensemble to a staged release, in one step.

        Returns:
            The ensemble's config before, for `restore`; None if the domain had none.
        """
        domain = release.manifest.domain
        path = self.folder / domain / CONFIG_NAME
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        config = parse_config((release.models / domain / CONFIG_NAME).read_text(encoding="utf-8"))
        config.version_policy.specific.versions.append(release.number)
        self._replace_if_changed(path, format_config(config).encode())
        return before

    def restore(self, domain: str, config: str | None) -> None:
        """Undo `switch`."""
        path = self.folder / domain / CONFIG_NAME
        if config is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, config.encode())

    def retire(self, domain: str, keep: Iterable[LiveRelease]) -> None:
        """Remove the version folders that none of the releases to keep pins."""
        kept = list(keep)
        models: dict[str, set[int]] = {domain: {release.number for release in kept}}
        for release in kept:
            for model, version in release.versions.items():
                models.setdefault(model, set()).add(version)
        for model, versions in models.items():
            for path in (self.folder / model).iterdir():
                if path.is_dir() and path.name.isdecimal() and int(path.name) not in versions:
                    remove(path)
