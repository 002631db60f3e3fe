"""What runs a domain has, found by their manifests alone: reading them takes no more than the standard library."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.errors import RunError
from training.run import Run

__all__ = ["derived_from", "equal_run", "newest_run", "run_manifests"]


def derived_from(run: Run, runs: Path) -> list[Run]:
    """The runs below `runs` that were derived from `run`, also by way of others, newest first."""
    parents = {run.run_id}
    found = []
    for path, manifest in reversed(list(run_manifests(runs))):  # oldest first: a parent is older than what it led to
        origin = manifest.get("derived_from")
        if isinstance(origin, dict) and origin.get("run_id") in parents:
            with contextlib.suppress(RunError):
                found.append(Run.open(path))
                parents.add(found[-1].run_id)
    return found[::-1]


def equal_run(run: Run, runs: Path) -> Run | None:
    """The newest other run below `runs` of the same content, made of the same files; None if there is none."""
    for path, manifest in run_manifests(runs):
        if path.name != run.run_id and manifest.get("fingerprint") == run.manifest.fingerprint:
            with contextlib.suppress(RunError):
                found = Run.open(path)
                if found.manifest.dataset == run.manifest.dataset:
                    return found
    return None


def newest_run(runs: Path) -> Run | None:
    """The newest whole run of a domain's folder `runs`, trained or derived; None if there is none."""
    for path, _ in run_manifests(runs):
        with contextlib.suppress(RunError):
            return Run.open(path)
    return None


def run_manifests(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of runs and what `run.json` says, newest first, unchecked: there may be hundreds to look through."""
    for path in sorted(runs.glob("[!.]*/run.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            manifest = json.loads(path.read_bytes())
            if isinstance(manifest, dict):
                yield path.parent, manifest
