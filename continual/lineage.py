"""What a run was derived from, by feedback and by newer catalogues, back to the one that was trained."""

from __future__ import annotations

from training.errors import RunError
from training.run import Run
from training.run_listing import ancestry, root_of

REASON = "continual tuning"
"""Why a run was derived, if feedback was."""


def lineage(run: Run) -> list[str]:
    """The ids of a run, its parent and so on; the last is that of the run that was trained, if all are there."""
    *_, oldest = runs = list(ancestry(run))
    origin = oldest.manifest.derived_from
    return [one.run_id for one in runs] + ([origin.run_id] if origin else [])


def trained_run(run: Run) -> Run | None:
    """The run that was trained, which a run was derived from if it is not that one; None if it is gone."""
    try:
        return Run.open(run.path.parent / root_of(run))
    except RunError:
        return None


def learned_until(run: Run) -> int:
    """The sequence number up to which a run, or what it was derived from, has learned feedback; 0 for none."""
    origins = (one.manifest.derived_from for one in ancestry(run))
    tuned = [int(one.details["until"]) for one in origins if one and one.reason == REASON]
    # A derived run keeps its parent's metrics, also where the one that was tuned is gone by now.
    return max([*tuned, int(run.manifest.metrics.get("continual", {}).get("until", 0))])
