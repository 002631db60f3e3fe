"""A derived run becomes the release after the one it was derived from: same precision, same way of serving."""

from __future__ import annotations

from typing import cast

from export.release import export_release
from export.settings import Precision
from serving.layout import Layout
from serving.releases import Release
from training.config import DomainConfig
from training.run import Run


def export_after(run: Run, before: Release, config: DomainConfig, layout: Layout) -> Release:
    """Export a run as the release `before` was exported.

    Args:
        run: with another head.
        before: the release of the run that it was derived from.
        config: the domain's config; whether all steps are one is as in `before`.
        layout: where releases lie.
    """
    mode = "fused" if "fused" in before.manifest.steps else "ensemble"
    config = config.model_copy(update={"serving": {**config.serving, "mode": mode}})
    precision = cast("Precision", before.manifest.precision)  # as export wrote it
    return export_release(run, config, layout, precision).release
