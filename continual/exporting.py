"""A derived run becomes the release after the one it was derived from: exported alike, unless asked otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.kept_settings import overrides_of, precision_of
from export.release import export_release
from serving.layout import Layout
from serving.releases import Release
from training.config_loading import load_config
from training.run import Run


def export_after(run: Run, before: Release, config: Path, overrides: Sequence[str], layout: Layout) -> Release:
    """Export a run as the release `before` was exported.

    Args:
        run: with another head.
        before: the release of the run that it was derived from.
        config: the domain's YAML; mode, engine and how graphs are made are as in `before`.
        overrides: what is asked for beside the YAML; it wins over what `before` has.
        layout: where releases lie.
    """
    kept = overrides_of(before)
    if load_config(config, overrides).continual.get("encoder", "frozen") != "frozen":
        kept = (*kept, "export.encoder_from=null")  # the run has an encoder of its own
    return export_release(run, load_config(config, (*kept, *overrides)), layout, precision_of(before)).release
