"""What two releases have in common and what not: steps, catalogue, labels, score weights, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ReleaseError
from .releases import Release
from .steps.catalogue import Catalogue

SHOWN = 5
"""So many names of added or removed items and labels are shown; the rest are counted."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two releases differ.

    Attributes:
        what: its name.
        before: in the first release.
        after: in the second.
    """

    what: str
    before: str
    after: str


def compare(before: Release, after: Release) -> list[Difference]:
    """Everything in which `after` differs from `before`, steps first.

    Raises:
        ReleaseError: a release is damaged, or they are of two domains.
    """
    first, second = before.manifest, after.manifest
    if first.domain != second.domain:
        raise ReleaseError(f"{before.path} is a release of {first.domain}, {after.path} one of {second.domain}")
    found = [
        Difference(f"step {name}", _version(first, name), _version(second, name))
        for name in sorted({*first.steps, *second.steps})
        if first.steps.get(name) != second.steps.get(name)
    ]
    for field in ("run_id", "precision", "created"):
        if getattr(first, field) != getattr(second, field):
            found.append(Difference(field, str(getattr(first, field)), str(getattr(second, field))))
    found += _of_catalogues(_catalogue(before), _catalogue(after))
    was, now = dict(_figures(first.metrics)), dict(_figures(second.metrics))
    found += [
        Difference(f"metric {name}", _figure(was.get(name)), _figure(now.get(name)))
        for name in sorted({*was, *now})
        if _figure(was.get(name)) != _figure(now.get(name))
    ]
    return found


def changed_steps(before: Release | None, after: Release) -> tuple[str, ...]:
    """The steps of a release whose content the release before it does not have."""
    if before is None:
        return tuple(after.manifest.steps)
    old = before.manifest.steps
    return tuple(name for name, step in after.manifest.steps.items() if old.get(name) != step)


def _version(manifest: Any, step: str) -> str:
    found = manifest.steps.get(step)
    return "-" if found is None else f"version {found.version}"


def _catalogue(release: Release) -> Catalogue | None:
    """The catalogue inside a release, whichever step holds it."""
    folders = [path.parent for path in Path(release.models).glob("*/*/catalogue.json")]
    try:
        return Catalogue.open(folders[0]) if folders else None
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"{release.path}: its catalogue cannot be read ({error}); export it again") from None


def _of_catalogues(before: Catalogue | None, after: Catalogue | None) -> Iterator[Difference]:
    if before is None or after is None:
        return
    old, new = _ids(before), _ids(after)
    yield from _sets("items", old, new)
    yield from _sets("labels", before.labels, after.labels)
    if before.score_weights != after.score_weights:
        yield Difference("score weights", str(before.score_weights), str(after.score_weights))


def _ids(catalogue: Catalogue) -> list[str]:
    return [catalogue.item_ids[row].decode() for row in range(len(catalogue.item_ids))]


def _sets(what: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Difference]:
    old, new = set(before), set(after)
    for word, names in (("removed", sorted(old - new)), ("added", sorted(new - old))):
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            yield Difference(f"{what} {word}", f"{len(before):,} in all", f"{', '.join(names[:SHOWN])}{more}")


def _figures(metrics: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(metrics, dict):
        for name, value in metrics.items():
            yield from _figures(value, f"{path}.{name}" if path else str(name))
    elif isinstance(metrics, (int, float)) and not isinstance(metrics, bool):
        yield path, float(metrics)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
