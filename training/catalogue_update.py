"""A run with a newer catalogue or newer events: encoder, head and score weights stay.

Only texts that are new are embedded; what the run learns from events is learned anew.
"""

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from training.config import DomainConfig, SourceConfig
from training.dataset import Dataset, Item
from training.dataset_loading import choose_source, event_tables, file_digests, load_interactions, load_items
from training.derived_run import derive_run
from training.embedding_cache import EmbeddingCache
from training.errors import DatasetError
from training.run import Run
from training.score import CatalogueSide, Vectors

if TYPE_CHECKING:
    from training.history_learning import Histories

__all__ = ["CatalogueChange", "compare_catalogues", "update_catalogue", "updated_vectors"]

LEAST_KEPT = 0.5
"""Share of a run's items, and of the people it learned from, that newer files have, unless more may go.

Half a file is likelier than half a shop.
"""
REASON = "catalogue"
NOTE = "newer than these metrics, which are of run "
Embed = Callable[[list[str]], Vectors]


@dataclass(frozen=True)
class CatalogueChange:
    """The ids of the items in which a newer catalogue differs, in its order; of those removed, in the older one's."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        """How many items of each kind."""
        return f"{len(self.added):,} added, {len(self.changed):,} changed, {len(self.removed):,} removed"


def compare_catalogues(before: Sequence[Item], after: Sequence[Item], *, ignore_priors: bool) -> CatalogueChange:
    """In which items two catalogues differ. The order of rows is no difference.

    Args:
        before: the older one.
        after: the newer one.
        ignore_priors: where priors are learned, the catalogue's own do not count.
    """
    known = {item.item_id: item for item in before}
    kept = {item.item_id for item in after}

    def differs(item: Item, old: Item) -> bool:
        return item != (replace(old, prior=item.prior) if ignore_priors else old)

    return CatalogueChange(
        added=tuple(item.item_id for item in after if item.item_id not in known),
        changed=tuple(item.item_id for item in after if item.item_id in known and differs(item, known[item.item_id])),
        removed=tuple(item.item_id for item in before if item.item_id not in kept),
    )


def update_catalogue(
    run: Run,
    config: DomainConfig,
    data: Path,
    var: Path,
    *,
    say: Callable[[str], None],
    may_shrink: bool = False,
) -> Run | None:
    """Derive a run that has the catalogue that `data` holds now; None if nothing of it is new.

    New is an item that differs from the run's and, where the run learns from events, a file of them.

    Args:
        run: what is derived from.
        config: the domain's config as it is now, for where the files lie and what their columns mean.
        data: the directory of datasets.
        var: where all that is produced lies.
        say: is given one line for each stage.
        may_shrink: whether more than half of the run's items, or of the people it learned from, may be gone.

    Raises:
        DatasetError: The catalogue breaks its contract, is of another source than the run's, has a label that the
            run's head does not know, has no item, or has lost more than half of them; or the events, where they are
            learned from, break theirs, are none, or are of less than half as many people.
        RunError: The run is damaged, or the new one cannot be written.
    """
    source = choose_source(config, data)
    file = source.catalogue.file
    if source.name != run.manifest.dataset.source:
        raise DatasetError(
            f"{file}: of the source {source.name!r}, the run is of {run.manifest.dataset.source!r}; "
            "give its data, or train a new run"
        )
    learns = _learns_from_events(run)
    # Hashed before they are read: what changes meanwhile is new to the next update.
    files = file_digests([source.catalogue], data)
    events = file_digests(event_tables(source), data) if learns else {}
    items, old = load_items(source, data), run.catalogue()
    change = compare_catalogues(old, items, ignore_priors=run.config.history.prior == "recency")
    record = run.manifest.dataset
    new_events = [name for name, digest in events.items() if digest != record.files.get(name)]
    same_items = f"the {len(items):,} items of {file}"
    if not change and not new_events:
        same = f"{same_items} and the events of {', '.join(events)}" if events else same_items
        say(f"catalogue: {same} are those of run {run.run_id}, nothing to do")
        return None
    counts = f"{change}; {len(old):,} items before, {len(items):,} now"
    say(f"catalogue: {counts if change else f'{same_items} are those of run {run.run_id}'}")
    if events:
        say(f"events: {', '.join(new_events)} changed" if new_events else f"events: those of run {run.run_id}")
    _check(run, file, old, items, change, may_shrink=may_shrink)
    started = time.monotonic()
    embedder = _Embedder(run, var)
    vectors = updated_vectors(old, run.item_vectors(), items, embedder)
    if embedder.texts:
        say(f"embedded {embedder.texts:,} texts in {time.monotonic() - started:.1f} s")
    with_priors, history_vectors, people = tuple(items), None, record.people
    if learns:
        dataset, histories = _learned(run, source, data, items, vectors, say)
        people = len(histories.people)
        _check_people(run, ", ".join(events), people, may_shrink=may_shrink)
        with_priors, history_vectors = histories.with_priors(dataset).items, histories.vectors
    newer = "the catalogue or its events are" if learns else "the catalogue is"
    notes = [note for note in run.manifest.metrics.get("notes", []) if NOTE not in note]
    return derive_run(
        run,
        var,
        reason=REASON,
        catalogue=with_priors,
        item_vectors=vectors,
        history_vectors=history_vectors,
        dataset=record.model_copy(update={"files": {**record.files, **files, **events}, "people": people}),
        metrics={**run.manifest.metrics, "notes": [*notes, f"{newer} {NOTE}{run.run_id}"]},
        details={
            "file": file,
            "sha256": files[file],
            "events": new_events,
            "added": len(change.added),
            "changed": len(change.changed),
            "removed": len(change.removed),
        },
    )


def updated_vectors(before: Sequence[Item], vectors: Vectors, after: Sequence[Item], embed: Embed) -> Vectors:
    """The item vectors of a newer catalogue, float32 [N, H].

    A vector depends on the item's text alone: whoever had the text before passes the vector on, whatever its id.

    Args:
        before: the older catalogue.
        vectors: its item vectors.
        after: the newer catalogue.
        embed: makes the vectors of texts that are new, each once.
    """
    row_of_text = {item.text: row for row, item in enumerate(before)}
    new = list(dict.fromkeys(item.text for item in after if item.text not in row_of_text))
    place_of_new = {text: place for place, text in enumerate(new)}
    made = embed(new) if new else np.empty((0, vectors.shape[1]), np.float32)
    found = np.empty((len(after), vectors.shape[1]), dtype=np.float32)
    for row, item in enumerate(after):
        known = row_of_text.get(item.text)
        found[row] = made[place_of_new[item.text]] if known is None else vectors[known]
    return found


class _Embedder:
    """A run's encoder, loaded only if there is a text that no cache knows. `texts` counts what it was asked for."""

    def __init__(self, run: Run, var: Path) -> None:
        self._run = run
        record = run.manifest.encoder
        self._cache = EmbeddingCache.below(var, run.encoder, record.pooling, record.max_length)
        self.texts = 0

    def __call__(self, texts: list[str]) -> Vectors:
        self.texts += len(texts)
        size, batch = self._run.manifest.encoder.hidden_size, self._run.config.training.embedding_batch_size
        with tqdm(total=len(texts), desc="embedding", unit="text", disable=None) as bar:
            return self._cache.embed_with(self._run.load_model, size, texts, batch, bar.update)


def _check(
    run: Run, file: str, old: Sequence[Item], items: Sequence[Item], change: CatalogueChange, *, may_shrink: bool
) -> None:
    known = set(run.labels)
    unknown = [item for item in items if item.label not in known]
    if unknown:
        first = unknown[0]
        near = difflib.get_close_matches(first.label, run.labels, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DatasetError(
            f"{file}: {len({item.label for item in unknown})} labels of {len(unknown):,} items are unknown to the head "
            f"of run {run.run_id}, the first is {first.label!r} of item {first.item_id!r}{hint}: a head learns new "
            "labels by training alone, run `make train`; nothing was changed"
        )
    if len(change.removed) > (1 - LEAST_KEPT) * len(old) and not may_shrink:
        raise DatasetError(
            f"{file}: lacks {len(change.removed):,} of the {len(old):,} items that run {run.run_id} has, which is more "
            "than half; nothing was changed. If that is meant: make catalogue SHRINK=yes"
        )


def _check_people(run: Run, files: str, people: int, *, may_shrink: bool) -> None:
    measured, before = run.manifest.metrics.get("history", {}), run.manifest.dataset.people
    if before is None:
        before = measured.get("people_fitted", 0) + measured.get("people_held_out", 0)
    if people < LEAST_KEPT * before and not may_shrink:
        raise DatasetError(
            f"{files}: has two events or more of {people:,} people, where run {run.run_id} learned from {before:,}; "
            "that is less than half, nothing was changed. If that is meant: make catalogue SHRINK=yes"
        )


def _learns_from_events(run: Run) -> bool:
    return run.config.history.prior == "recency" or run.config.history.vectors == "behaviour"


def _learned(
    run: Run, source: SourceConfig, data: Path, items: Sequence[Item], vectors: Vectors, say: Callable[[str], None]
) -> "tuple[Dataset, Histories]":
    """What events teach of the items, learned as in training; those of items that the catalogue lacks are left out."""
    from training.history_learning import learn_histories  # noqa: PLC0415 - loads scipy, which few catalogues need

    dataset = Dataset(
        source=source.name,
        items=tuple(items),
        instructions=(),
        interactions=tuple(load_interactions(source, data, {item.item_id: item for item in items})),
        weak_labels=False,
        has_prior=source.catalogue.prior is not None,
        fingerprint="",
        files={},
    )
    if not dataset.interactions:
        raise DatasetError(f"source {source.name!r}: priors or histories are learned from events, and there are none")
    label_id = {label: number for number, label in enumerate(run.labels)}
    side = CatalogueSide(vectors, [label_id[item.label] for item in items], [item.prior for item in items])
    return dataset, learn_histories(run.config, dataset, side, say)
