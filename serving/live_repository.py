"""The live repository: the folder that Triton reads, changed so that it is whole at every instant.

A step's version folders live side by side (`<domain>_<step>/<version>/`); a release is what the ensemble's config pins.
New version folders are renamed into place first, the ensemble's config is replaced last, by a rename. So a crash at any
point leaves the old release or the new one, and the server can be restarted from the folder as it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import PublishError
from .files import make_folder, remove, rename_into_place, sha256_of, write_atomically
from .manifest import Step
from .releases import Release
from .step_configs import (
    CONFIG_NAME,
    VARIANTS_FOLDER,
    StepConfigs,
    format_config,
    parse_config,
    read_config,
    replace_if_changed,
)
from .unfinished import Marks

__all__ = [
    "CANARY_OF",
    "CONFIG_NAME",
    "INCOMING",
    "RETIRED",
    "LiveRelease",
    "LiveRepository",
    "contents",
    "format_config",
    "parse_config",
    "read_config",
]

# Triton passes over version folders whose name is not a number.
INCOMING = ".incoming-"
RETIRED = ".retired-"
CANARY_OF = "canary_of"
"""The parameter by which an ensemble is known to be a canary; its value is the domain."""
PARTS = frozenset({"tokenizer", "encoder", "head", "topk", "fused", "canary"})
"""What a `<domain>_<part>` is called that releases and canaries bring."""
SHARED_STEP = re.compile(r"(tokenizer|encoder)_[0-9a-f]{12}")
"""The names of the steps that domains share."""


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
        self.marks = Marks(folder)
        self.steps = StepConfigs(folder)

    def domains(self) -> list[str]:
        """The domains that are live."""
        return self._ensembles(with_canaries=False)

    def ensembles(self) -> list[str]:
        """The domains that are live, and their canaries."""
        return self._ensembles(with_canaries=True)

    def _ensembles(self, *, with_canaries: bool) -> list[str]:
        configs = {path.parent.name: read_config(path) for path in self.folder.glob(f"*/{CONFIG_NAME}")}
        return sorted(
            name
            for name, config in configs.items()
            if config.platform == "ensemble" and (with_canaries or CANARY_OF not in config.parameters)
        )

    def holds(self, model: str) -> bool:
        """Whether there is a model of this name."""
        return (self.folder / model / CONFIG_NAME).is_file()

    def live_release(self, domain: str) -> LiveRelease | None:
        """What a domain's ensemble pins now, or None before its first release."""
        path = self.folder / domain / CONFIG_NAME
        if not path.is_file():
            return None
        config = read_config(path)
        versions = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
        return LiveRelease(number=config.version_policy.specific.versions[0], versions=versions)

    def ensemble_config(self, domain: str) -> str | None:
        """A domain's ensemble's config, for `restore`; None if there is none."""
        path = self.folder / domain / CONFIG_NAME
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _pinned(self) -> dict[str, set[int]]:
        """The versions that live ensembles need, by model: domains may share a step, and canaries have some too."""
        pinned: dict[str, set[int]] = {}
        for live in filter(None, map(self.live_release, self.ensembles())):
            for model, version in live.versions.items():
                pinned.setdefault(model, set()).add(version)
        return pinned

    def stage(self, release: Release, *, variants: bool = True) -> list[str]:
        """Bring a release's version folders and step configs in, beside what is live; nothing answers differently yet.

        Args:
            release: what to bring in.
            variants: whether its config variants (`configs/gpu.pbtxt`) fit this machine; without them Triton reads
                config.pbtxt, and the ONNX graph answers.

        Returns:
            The models whose versions changed, which a running server has to load.

        Raises:
            PublishError: the folder cannot be written (full, read-only), or holds other files under the release's
                numbers.
        """
        with self._writing():
            self._remove_leftovers()
            self._mark(release)
            return self._stage(release, variants=variants)

    def settle(self, release: Release, *, variants: bool) -> list[str]:
        """Let the steps of a live release have its configs again, after what was staged beside it changed them.

        Args:
            release: what is live.
            variants: as for `stage`.

        Returns:
            As `stage`.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            return self._stage(release, variants=variants)

    def _stage(self, release: Release, *, variants: bool) -> list[str]:
        pinned = self._pinned()
        changed = [
            step.model
            for step in release.manifest.steps.values()
            if self._stage_step(release, step, pinned.get(step.model, set()), variants=variants)
        ]
        self._stage_folder(release, release.manifest.domain, release.number)
        return changed

    def _mark(self, release: Release) -> None:
        """Say that a publish has begun, before anything of it is there; `confirm` or `discard` ends it."""
        domain = release.manifest.domain
        config = self.folder / domain / CONFIG_NAME
        self.marks.add(domain, release.number, config.read_bytes() if config.is_file() else None)

    def confirm(self, domain: str) -> None:
        """End a domain's publish: the release that its ensemble pins has answered, and that is written down.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            self.marks.remove(domain)

    def _stage_step(self, release: Release, step: Step, pinned: set[int], *, variants: bool) -> bool:
        source = release.models / step.model
        copied = self._stage_folder(release, step.model, step.version)
        for extra in source.glob("*/*"):  # warm-up data, which lies beside the versions
            if extra.is_file() and extra.parent.name != VARIANTS_FOLDER and not extra.parent.name.isdecimal():
                parts = (step.model, extra.parent.name, extra.name)
                replace_if_changed(self.folder.joinpath(*parts), release.model_file(*parts))
        return self.steps.stage(release, step, pinned, copied=copied, variants=variants) or copied

    def drop_variants(self, models: Iterable[str]) -> None:
        """Have Triton read the models' config.pbtxt, as long as nothing of theirs is staged anew.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            for model in models:
                self.steps.set_variants(model, {}, set())

    def _stage_folder(self, release: Release, model: str, version: int) -> bool:
        """Copy one version folder in, unless it is there; it appears whole, as the manifest has it, or not at all."""
        source, final = release.models / model / str(version), self.folder / model / str(version)
        expected = release.manifest.digests_below(source.relative_to(release.path).as_posix())
        if final.is_dir():
            if contents(final) != expected:
                raise PublishError(
                    f"{final} holds other files than {source}: the release was made anew under an old number, or one "
                    f"of the two is damaged; `make export RUN={release.manifest.run_id} REUSE=no` makes it under a new "
                    "number, and `make deploy` brings that live"
                )
            return False
        incoming = final.with_name(f"{INCOMING}{source.name}")
        try:
            make_folder(incoming.parent)
            shutil.copytree(source, incoming)
            if contents(incoming) != expected:
                raise PublishError(
                    f"what was copied from {source} does not have the sha256 of the manifest: the file was changed "
                    "meanwhile, or a disk fails"
                )
            rename_into_place(incoming, final)
        except BaseException:
            remove(incoming)
            raise
        return True

    def switch(self, release: Release) -> None:
        """Re-point the domain's ensemble to a staged release, in one step.

        Raises:
            PublishError: the config cannot be written; `live_release` says which one is there.
        """
        domain = release.manifest.domain
        path = self.folder / domain / CONFIG_NAME
        config = parse_config(release.model_file(domain, CONFIG_NAME).decode())
        config.version_policy.specific.versions.append(release.number)
        with self._writing():
            replace_if_changed(path, format_config(config).encode())

    def unlist(self, release: LiveRelease) -> None:
        """Have a server that starts next pass over what only a release needs that was switched away from.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            pinned = self._pinned()
            for model, version in release.versions.items():
                if model in pinned and version not in pinned[model]:
                    self.steps.list_versions(model, self.steps.listed(model) - {version})

    def restore(self, domain: str, config: str | None) -> None:
        """Undo `switch`, and an `unlist` after it.

        Args:
            domain: which was switched.
            config: its `ensemble_config` from before.

        Raises:
            PublishError: the config cannot be written.
        """
        path = self.folder / domain / CONFIG_NAME
        with self._writing():
            # First, so that what is pinned is listed at every instant.
            for step in parse_config(config or "").ensemble_scheduling.step:
                if step.model_version not in (listed := self.steps.listed(step.model_name)):
                    self.steps.list_versions(step.model_name, listed | {step.model_version})
            kept = next((one for one in self.marks.find(domain) if config is not None and one.before == config), None)
            if kept is not None:
                kept.put_back(path)
            elif config is not None:
                write_atomically(path, config.encode())
            else:
                path.unlink(missing_ok=True)

    def discard(self, release: Release) -> None:
        """Take out a staged release that failed, so that a server started later does not stumble over it.

        Where the switch to it could not be undone, its mark stays, so that the next command does that.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            pinned = self._pinned()
            for step in release.manifest.steps.values():
                needed = pinned.get(step.model, set())
                path = self.folder / step.model / CONFIG_NAME
                if step.version in needed or not path.is_file():
                    continue
                if needed:
                    self.steps.list_versions(step.model, self.steps.listed(step.model) - {step.version})
                else:
                    path.unlink()
                    self.steps.set_variants(step.model, {}, set())
                self._retire_folder(self.folder / step.model / str(step.version))
            domain = release.manifest.domain
            before = {one.number: one.before for one in self.marks.find(domain)}
            if before.get(release.number, "") == self.ensemble_config(domain):
                self.marks.remove(domain, release.number)

    def retire(self, domain: str, keep: Iterable[LiveRelease], *, others: Iterable[LiveRelease] = ()) -> list[str]:
        """Remove the version folders that no release to keep, no live ensemble and no step's config names.

        Folders that no release of ours brought are passed over: models of others, and what a volume keeps for itself.

        Args:
            domain: whose release was published.
            keep: of this domain.
            others: releases of other domains whose steps are to stay.

        Returns:
            The models of which nothing is left, as when a domain was served in four steps before: a running server
            still has to unload them.

        Raises:
            PublishError: the folder cannot be written.
        """
        kept = list(keep)
        needed = self._pinned()
        needed.setdefault(domain, set()).update(release.number for release in kept)
        for other in self.ensembles():
            needed.setdefault(other, set(self.steps.listed(other)))
        for release in (*kept, *others):
            for model, version in release.versions.items():
                needed.setdefault(model, set()).add(version)
        with self._writing():
            for model, versions in needed.items():
                if (self.folder / model).is_dir():
                    listed = self.steps.listed(model)
                    for path in (self.folder / model).iterdir():
                        if path.name.isdecimal() and int(path.name) not in versions | listed:
                            self._retire_folder(path)
            own = {f"{one}_{part}" for one in {domain, *self.domains()} for part in PARTS}
            orphans = [
                path
                for path in sorted(self.folder.iterdir())
                if path.name not in needed and (path.name in own or SHARED_STEP.fullmatch(path.name)) and path.is_dir()
            ]
            for path in orphans:
                (path / CONFIG_NAME).unlink(missing_ok=True)  # first: without it, the rest is no model
                self._retire_folder(path)
        return [path.name for path in orphans]

    @staticmethod
    def _retire_folder(path: Path) -> None:
        """Remove a version folder: under its own name it is whole or not there, also if we are killed half-way."""
        if path.is_dir():
            retired = path.with_name(f"{RETIRED}{path.name}")
            remove(retired)
            path.rename(retired)
            remove(retired)

    def _remove_leftovers(self) -> None:
        for pattern in (f"*/{INCOMING}*", f"*/{RETIRED}*", f"{RETIRED}*", ".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
            for path in self.folder.glob(pattern):
                remove(path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say in one line why the folder could not be written."""
        try:
            yield
        except shutil.Error as error:
            reason = error.args[0][0][2] if error.args and error.args[0] else error
            raise PublishError(f"cannot write the live repository {self.folder}: {reason}") from None
        except OSError as error:
            raise PublishError(f"cannot write the live repository {self.folder}: {error.strerror or error}") from None


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}
