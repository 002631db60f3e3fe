"""A run with a newer catalogue: encoder, head and score weights stay, only texts that are new are embedded."""

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.config import DomainConfig
from training.dataset import Dataset, Item
from training.dataset_loading import choose_source, load_interactions, load_items
from training.derived_run import derive_run
from training.embedding_cache import EmbeddingCache
from training.encoder_source import file_sha256
from training.errors import DatasetError
from training.run import Run
from training.score import CatalogueSide, Vectors

__all__ = ["CatalogueChange", "compare_catalogues", "update_catalogue", "updated_vectors"]

LEAST_KEPT = 0.5
"""Share of a run's items that a newer catalogue has, unless more may go: half a file is likelier than half a shop."""
REASON = "catalogue"
NOTE = "the catalogue is newer than these metrics, which are of run "
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
    """Derive a run that has the catalogue that `data` holds now; None if it is the run's own.

    Args:
        run: what is derived from.
        config: the domain's config as it is now, for where the catalogue lies and what its columns mean.
        data: the directory of datasets.
        var: where all that is produced lies.
        say: is given one line for each stage.
        may_shrink: whether more than half of the run's items may be gone.

    Raises:
        DatasetError: The catalogue breaks its contract, is of another source than the run's, has a label that the
            run's head does not know, has no item, or has lost more than half of them.
        RunError: The run is damaged, or the new one cannot be written.
    """
    source = choose_source(config, data)
    file = source.catalogue.file
    if source.name != run.manifest.dataset.source:
        raise DatasetError(
            f"{file}: of the source {source.name!r}, the run is of {run.manifest.dataset.source!r}; "
            "give its data, or train a new run"
        )
    items, old = load_items(source, data), run.catalogue()
    change = compare_catalogues(old, items, ignore_priors=run.config.history.prior == "recency")
    if not change:
        say(f"catalogue: the {len(items):,} items of {file} are those of run {run.run_id}, nothing to do")
        return None
    say(f"catalogue: {change}; {len(old):,} items before, {len(items):,} now")
    _check(run, file, old, items, change, may_shrink=may_shrink)
    started = time.monotonic()
    embedder = _Embedder(run, var)
    vectors = updated_vectors(old, run.item_vectors(), items, embedder)
    if embedder.texts:
        say(f"embedded {embedder.texts:,} texts in {time.monotonic() - started:.1f} s")
    with_priors, history_vectors = _learned(run, config, data, items, vectors, say)
    notes = [note for note in run.manifest.metrics.get("notes", []) if not note.startswith(NOTE)]
    derived = derive_run(
        run,
        var,
        reason=REASON,
        catalogue=with_priors,
        item_vectors=vectors,
        history_vectors=history_vectors,
        metrics={**run.manifest.metrics, "notes": [*notes, f"{NOTE}{run.run_id}"]},
        details={
            "file": file,
            "sha256": file_sha256(data / file),
            "added": len(change.added),
            "changed": len(change.changed),
            "removed": len(change.removed),
        },
    )
    say(f"run: {derived.path}")
    return derived


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


def _learned(
    run: Run, config: DomainConfig, data: Path, items: Sequence[Item], vectors: Vectors, say: Callable[[str], None]
) -> tuple[Sequence[Item], Vectors | None]:
    """The items with learned priors, and the history vectors, where the run has such: learned anew, as in training.

    Events of items that the catalogue no longer has are left out.
    """
    settings = run.config.history
    if settings.prior != "recency" and settings.vectors != "behaviour":
        return items, None
    from training.history_learning import learn_histories  # noqa: PLC0415 - loads scipy, which few catalogues need

    source = choose_source(config, data)
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
    histories = learn_histories(run.config, dataset, side, say)
    return histories.with_priors(dataset).items, histories.vectors
