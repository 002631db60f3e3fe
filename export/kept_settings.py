"""How a release was exported, so that the next one of the same domain is exported alike."""

from __future__ import annotations

from export.errors import ExportError
from export.model_config import FUSED, step_name
from export.settings import PRECISIONS, Precision
from serving.live_repository import CONFIG_NAME, parse_config
from serving.releases import Release

__all__ = ["precision_of", "serving_overrides"]


def precision_of(release: Release) -> Precision:
    """The precision of a release's encoder.

    Raises:
        ExportError: this version of the kit does not know it.
    """
    found = release.manifest.precision
    if found not in PRECISIONS:
        raise ExportError(f"{release.path} has the precision {found!r}; name one with PRECISION=")
    return found


def serving_overrides(release: Release) -> tuple[str, ...]:
    """How a release is served, as overrides of a domain's YAML: its mode and its engine."""
    manifest = release.manifest
    step = FUSED if FUSED in manifest.steps else "encoder"
    path = release.models / step_name(manifest.domain, step) / CONFIG_NAME
    config = parse_config(path.read_text(encoding="utf-8"))
    engine = config.parameters["engine"].string_value if step == FUSED else config.backend
    mode = "fused" if step == FUSED else "ensemble"
    return (f"serving.mode={mode}", f"serving.engine={engine}")
