"""What the live head was taught and measured on: the replay, and the held-out instructions that it must not lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.releases import Release
from training.dataset import SPLITS, Item
from training.embedding_cache import EmbeddingCache
from training.run import Run

from .head_update import Examples, HeadWeights, Vectors
from .release_encoder import ReleaseEncoder
from .remembered import Remembered, read_remembered


@dataclass(frozen=True)
class OldSkill:
    """A live release's head with all that is needed to re-tune it, kept between two tunings.

    Attributes:
        run: what the release was exported of.
        release: the release.
        head: its head.
        items: its catalogue.
        remembered: the feedback that it has learned.
        replay: what may be learned again: training instructions, then remembered feedback, then items.
        instructions: how many of the replay are training instructions.
        validation: the run's validation instructions, which choose between heads.
        test: its test instructions, which judge the one that was chosen.
        feedback: the remembered feedback that was held out, which judges it too.
    """

    run: Run
    release: Release
    encoder: ReleaseEncoder
    cache: EmbeddingCache
    head: HeadWeights
    items: tuple[Item, ...]
    remembered: tuple[Remembered, ...]
    replay: Examples
    instructions: int
    validation: Examples
    test: Examples
    feedback: Examples

    @property
    def judged_on(self) -> Examples:
        """The test instructions (where there are none, the validation instructions), and the earlier feedback."""
        return joined(self.test if len(self.test) else self.validation, self.feedback)

    def label_of_item(self) -> dict[str, str]:
        """Each item's label, by its id."""
        return {item.item_id: item.label for item in self.items}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The release's own vectors of some texts, float32 [n, H]."""
        return self.cache.embed(self.encoder, texts, batch_size=64)

    def label_ids(self, labels: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The head's rows of some labels."""
        ids = {label: number for number, label in enumerate(self.run.labels)}
        return np.array([ids[label] for label in labels], dtype=np.int64)


def open_old_skill(run: Run, release: Release, var: Path, items_per_label: int, item_weight: float) -> OldSkill:
    """Read a run, and embed its instructions with the release's encoder unless the cache has their vectors."""
    encoder = ReleaseEncoder(release, run)
    cache = encoder.cache(var)
    items, instructions, remembered = tuple(run.catalogue()), run.instructions(), read_remembered(run)
    said = [(one.text, one.label) for one in instructions] + [(one.text, one.label) for one in remembered]
    vectors = cache.embed(encoder, [text for text, _ in said], batch_size=64)
    ids = {label: number for number, label in enumerate(run.labels)}
    label_ids = np.array([ids[label] for _, label in said], dtype=np.int64)
    weights = np.array([1.0] * len(instructions) + [one.weight for one in remembered])
    kinds = np.array(
        [one.split for one in instructions]
        + ["held-out feedback" if one.held_out else "taught feedback" for one in remembered]
    )
    train, validation, test, taught, held_out = (
        Examples(vectors[kinds == kind], label_ids[kinds == kind], weights[kinds == kind])
        for kind in (*SPLITS, "taught feedback", "held-out feedback")
    )
    rows = rows_per_label([item.label for item in items], items_per_label)
    of_items = Examples(
        run.item_vectors()[rows],
        np.array([ids[items[row].label] for row in rows], dtype=np.int64),
        np.full(len(rows), item_weight),
    )
    return OldSkill(
        run=run,
        release=release,
        encoder=encoder,
        cache=cache,
        head=HeadWeights(*run.head()),
        items=items,
        remembered=remembered,
        replay=joined(train, taught, of_items),
        instructions=len(train),
        validation=validation,
        test=test,
        feedback=held_out,
    )


def joined(*parts: Examples) -> Examples:
    """All examples, in this order."""
    return Examples(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.label_ids for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def rows_per_label(labels: Sequence[str], count: int) -> list[int]:
    """At most `count` rows of each label, spread evenly over those that there are."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    return [row for rows in rows_of.values() for row in rows[:: max(1, -(-len(rows) // max(1, count)))][:count]]


def drawn(replay: Examples, instructions: int, most: int, seed: int) -> Examples:
    """The replay with at most `most` of its training instructions, which are its first `instructions` examples."""
    if instructions <= most:
        return replay
    kept = np.sort(np.random.default_rng(seed).permutation(instructions)[:most])
    rows = np.concatenate([kept, np.arange(instructions, len(replay))])
    return Examples(replay.vectors[rows], replay.label_ids[rows], replay.weights[rows])
