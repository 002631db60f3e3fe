"""How a release was exported, so that the next one of the same domain is exported alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from tritonclient.grpc import model_config_pb2

from export.errors import ExportError
from export.model_config import FUSED
from export.settings import PRECISIONS, Engine, Mode, Precision
from serving.errors import PublishError
from serving.live_repository import CONFIG_NAME, read_config
from serving.releases import Release
from serving.steps.encoder_engine import ENGINES

__all__ = ["ServedAs", "overrides_of", "precision_of", "served_as"]


@dataclass(frozen=True)
class ServedAs:
    """How a release is served.

    Attributes:
        mode: in four steps, or in one.
        engine: what runs the encoder.
        max_length: tokens that a text is cut to.
    """

    mode: Mode
    engine: Engine
    max_length: int


def precision_of(release: Release) -> Precision:
    """The precision of a release's encoder.

    Raises:
        ExportError: this version of the kit does not know it.
    """
    found = release.manifest.precision
    if found not in PRECISIONS:
        raise ExportError(f"{release.path} has the precision {found!r}; name one with PRECISION=")
    return found


def served_as(release: Release) -> ServedAs:
    """How a release is served, by the configs of its steps.

    Raises:
        ExportError: a config is missing, or does not say so.
    """
    fused = FUSED in release.manifest.steps
    try:
        if fused:
            parameters = _config(release, FUSED).parameters
            engine, lengths = parameters["engine"].string_value, parameters["max_length"].string_value
        else:
            engine = _config(release, "encoder").backend
            lengths = _config(release, "tokenizer").parameters["length_buckets"].string_value
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}")
        return ServedAs("fused" if fused else "ensemble", cast("Engine", engine), int(lengths.split(",")[-1]))
    except (OSError, KeyError, ValueError, PublishError) as error:
        raise ExportError(
            f"{release.path}: does not say how it is served ({error}); export the release again"
        ) from None


def overrides_of(release: Release) -> tuple[str, ...]:
    """What makes a release like this one, as overrides of the domain's YAML: mode, engine and the section `export`.

    Raises:
        ExportError: as `served_as`.
    """
    served, exported = served_as(release), release.manifest.export_settings
    settings = (f"export.{key}={json.dumps(value)}" for key, value in exported.items())
    return f"serving.mode={served.mode}", f"serving.engine={served.engine}", *settings


def _config(release: Release, step: str) -> model_config_pb2.ModelConfig:
    return read_config(release.models / release.manifest.steps[step].model / CONFIG_NAME)
