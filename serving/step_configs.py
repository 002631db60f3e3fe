"""The configs of the steps in the live repository: which versions Triton loads, and with which variant of the config.

Beside a step's config.pbtxt there may be variants of it (`configs/gpu.pbtxt`), one of which Triton reads instead. It
loads all versions of a model with one config, so a variant is there only while each of them has the file that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from .embedded import join_lengths, shorten_warm_up
from .errors import PublishError
from .files import write_atomically
from .manifest import Step
from .releases import Release

CONFIG_NAME = "config.pbtxt"
VARIANTS_FOLDER = "configs"
"""Beside config.pbtxt: variants of it, one of which `--model-config-name` chooses where it is there."""


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    """Parse a config.pbtxt.

    Raises:
        google.protobuf.text_format.ParseError: it is not a model config.
    """
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Read a config.pbtxt of the live repository.

    Raises:
        PublishError: somebody damaged it: it is not a model config.
    """
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (text_format.ParseError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise PublishError(
            f"{path} is damaged ({reason}); run `make stop`, remove the folder of it, and deploy again"
        ) from None


def format_config(config: model_config_pb2.ModelConfig) -> str:
    """Write a model config as config.pbtxt text."""
    return str(text_format.MessageToString(config))


def replace_if_changed(path: Path, content: bytes) -> bool:
    """Leave an unchanged file alone: where one beside the versions looks newer, Triton reloads all of them."""
    if path.is_file() and path.read_bytes() == content:
        return False
    write_atomically(path, content)
    return True


class StepConfigs:
    """Writes and reads the configs of steps; an error of the file system is left to the caller."""

    def __init__(self, folder: Path) -> None:
        """Take the live repository's folder; it need not exist yet."""
        self.folder = folder

    def stage(self, release: Release, step: Step, pinned: set[int], *, copied: bool, variants: bool) -> bool:
        """Bring a release's config of a step in; its version's folder is there.

        Args:
            release: whose.
            step: which.
            pinned: the versions that live ensembles need.
            copied: whether the version is new there.
            variants: whether the release's variants of the config fit this machine.

        Returns:
            Whether anything changed.
        """
        versions, listed = pinned | {step.version}, self.listed(step.model)
        fitting = self._fitting(release, step.model, versions) if variants else {}
        if not copied and versions <= listed and all(self._fits(step.model, one, listed) for one in fitting.values()):
            # An old version may stay until the step changes: nothing asks it, and taking it out is one load more.
            versions = listed
        config = parse_config(release.model_file(step.model, CONFIG_NAME).decode())
        config.version_policy.specific.versions.extend(sorted(versions))
        join_lengths(config)
        shorten_warm_up(config)
        changed = replace_if_changed(self.folder / step.model / CONFIG_NAME, format_config(config).encode())
        return self.set_variants(step.model, fitting, versions) or changed

    def listed(self, model: str) -> set[int]:
        """The versions that a step's config tells Triton to load."""
        path = self.folder / model / CONFIG_NAME
        if not path.is_file():
            return set()
        return set(read_config(path).version_policy.specific.versions)

    def list_versions(self, model: str, versions: set[int]) -> None:
        """Have Triton load these versions of a step."""
        path = self.folder / model / CONFIG_NAME
        config = read_config(path)
        config.version_policy.specific.versions[:] = sorted(versions)
        replace_if_changed(path, format_config(config).encode())
        variants = {one.name: read_config(one) for one in (path.parent / VARIANTS_FOLDER).glob("*.pbtxt")}
        fitting = {name: one for name, one in variants.items() if self._fits(model, one, versions)}
        self.set_variants(model, fitting, versions)

    def set_variants(
        self, model: str, variants: Mapping[str, model_config_pb2.ModelConfig], versions: set[int]
    ) -> bool:
        """Have these variants of a step's config, by name, and no others.

        Returns:
            Whether anything changed.
        """
        folder, changed = self.folder / model / VARIANTS_FOLDER, False
        for path in folder.glob("*.pbtxt"):
            if path.name not in variants:
                path.unlink()
                changed = True
        for name, config in variants.items():
            config.version_policy.specific.versions[:] = sorted(versions)
            join_lengths(config)
            folder.mkdir(exist_ok=True)
            changed |= replace_if_changed(folder / name, format_config(config).encode())
        return changed

    def variants(self) -> dict[str, set[int]]:
        """The models whose config Triton reads in a variant, and the versions that it loads with it."""
        paths = sorted(self.folder.glob(f"*/{VARIANTS_FOLDER}/*.pbtxt"))
        return {path.parent.parent.name: set(read_config(path).version_policy.specific.versions) for path in paths}

    def missing_variants(self, release: Release) -> dict[str, set[int]]:
        """The models of a release whose variant is not there, and the listed versions that it waits for, if any."""
        missing, there = {}, self.variants()
        for model in [step.model for step in release.manifest.steps.values() if step.model not in there]:
            for path in (release.models / model / VARIANTS_FOLDER).glob("*.pbtxt"):
                config = read_config(path)
                missing[model] = {one for one in self.listed(model) if not self._fits(model, config, {one})}
        return missing

    def _fitting(self, release: Release, model: str, versions: set[int]) -> dict[str, model_config_pb2.ModelConfig]:
        """A release's variants of a step's config with which all of these versions can be loaded, by name."""
        names = [path.name for path in (release.models / model / VARIANTS_FOLDER).glob("*.pbtxt")]
        found = {name: parse_config(release.model_file(model, VARIANTS_FOLDER, name).decode()) for name in names}
        return {name: config for name, config in found.items() if self._fits(model, config, versions)}

    def _fits(self, model: str, config: model_config_pb2.ModelConfig, versions: set[int]) -> bool:
        """Whether each version has the file that a config names: an engine, which a release may lack."""
        folder, name = self.folder / model, config.default_model_filename
        return all((folder / str(version) / name).is_file() for version in versions)
