"""What a run was derived from, by feedback and by newer catalogues, back to the one that was trained."""

from __future__ import annotations

from collections.abc import Iterator

from training.errors import RunError
from training.run import Run

REASON = "continual tuning"
"""Why a run was derived, if feedback was."""


def ancestry(run: Run) -> Iterator[Run]:
    """A run, its parent and so on, as far as they are still there."""
    while True:
        yield run
        origin = run.manifest.derived_from
        if origin is None:
            return
        try:
            run = Run.open(run.path.parent / origin.run_id)
        except RunError:
            return


def lineage(run: Run) -> list[str]:
    """The ids of a run, its parent and so on; the last is that of the run that was trained, if all are there."""
    *_, oldest = runs = list(ancestry(run))
    origin = oldest.manifest.derived_from
    return [one.run_id for one in runs] + ([origin.run_id] if origin else [])


def learned_until(run: Run) -> int:
    """The sequence number up to which a run, or what it was derived from, has learned feedback; 0 for none."""
    origins = (one.manifest.derived_from for one in ancestry(run))
    return max((int(one.details["until"]) for one in origins if one and one.reason == REASON), default=0)
