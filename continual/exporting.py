"""A derived run becomes the release after the one it was derived from: same precision, same way of serving."""

from __future__ import annotations

from export.kept_settings import precision_of, served_as
from export.release import export_release
from serving.layout import Layout
from serving.releases import Release
from training.config import DomainConfig
from training.run import Run


def export_after(run: Run, before: Release, config: DomainConfig, layout: Layout) -> Release:
    """Export a run as the release `before` was exported.

    Args:
        run: with another head.
        before: the release of the run that it was derived from.
        config: the domain's config; mode, engine and how graphs are made are as in `before`.
        layout: where releases lie.
    """
    served = served_as(before)
    kept = dict(before.manifest.export_settings)
    if config.continual.get("encoder", "frozen") != "frozen":
        kept.pop("encoder_from", None)  # the run has an encoder of its own
    config = config.model_copy(
        update={
            "serving": {**config.serving, "mode": served.mode, "engine": served.engine},
            "export": {**config.export, **kept},
        },
    )
    return export_release(run, config, layout, precision_of(before)).release
