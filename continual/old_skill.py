"""What the live head was taught and measured on: the replay, and the held-out instructions that it must not lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.graph_encoder import BATCH_SIZE
from serving.releases import Release
from training.dataset import SPLITS, Instruction, Item, says_one_of, wording
from training.embedding_cache import Embedder, EmbeddingCache
from training.run import Run

from .head_update import Examples, HeadWeights, Vectors
from .lineage import trained_run
from .release_encoder import release_encoder
from .remembered import Remembered, read_remembered
from .settings import ContinualSettings


@dataclass(frozen=True)
class OldSkill:
    """A live release's head with all that is needed to re-tune it, kept between two tunings.

    Attributes:
        run: what the release was exported of.
        release: the release.
        encoder: what all vectors are by: the release's own graph.
        cache: of its vectors.
        batch_size: how many texts it is given at a time.
        head: its head.
        trained: the head as it was trained, before any feedback, where it knows the same labels and encoder; else None.
        items: its catalogue.
        remembered: the feedback that it has learned.
        train: the training instructions that may be learned again, drawn if there are many.
        replay: what may be learned again: those, then remembered feedback, then items.
        validation: the run's validation instructions, which choose between heads.
        test: its test instructions, which judge the one that was chosen.
        feedback: the remembered feedback that was held out, which judges it too.
    """

    run: Run
    release: Release
    encoder: Embedder
    cache: EmbeddingCache
    batch_size: int
    head: HeadWeights
    trained: HeadWeights | None
    items: tuple[Item, ...]
    remembered: tuple[Remembered, ...]
    train: tuple[Instruction, ...]
    replay: Examples
    validation: Examples
    test: Examples
    feedback: Examples

    @property
    def judged_on(self) -> Examples:
        """The test instructions; where there are none, the validation instructions."""
        return self.test if len(self.test) else self.validation

    def label_of_item(self) -> dict[str, str]:
        """Each item's label, by its id."""
        return {item.item_id: item.label for item in self.items}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The encoder's vectors of some texts, float32 [n, H]."""
        return self.cache.embed(self.encoder, texts, batch_size=self.batch_size)

    def label_ids(self, labels: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The head's rows of some labels."""
        ids = {label: number for number, label in enumerate(self.run.labels)}
        return np.array([ids[label] for label in labels], dtype=np.int64)


def open_old_skill(run: Run, release: Release, var: Path, settings: ContinualSettings) -> OldSkill:
    """Read a run, and embed what counts of it with the release's encoder unless the cache has the vectors."""
    train = run.instructions("train")
    encoder = release_encoder(release, run)
    none = Examples.none(run.manifest.encoder.hidden_size)
    skill = OldSkill(
        run=run,
        release=release,
        encoder=encoder,
        cache=encoder.cache(var),
        batch_size=BATCH_SIZE,
        head=HeadWeights(*run.head()),
        trained=_as_trained(run),
        items=tuple(run.catalogue()),
        remembered=read_remembered(run),
        train=tuple(train[row] for row in drawn_rows(len(train), settings.replay, settings.seed)),
        replay=none,
        validation=none,
        test=none,
        feedback=none,
    )
    rows = _replayed_items(skill, settings)
    return _with_examples(skill, rows, run.item_vectors()[rows], settings.replay_item_weight)


def _as_trained(run: Run) -> HeadWeights | None:
    trained = trained_run(run)
    if trained is None or trained.labels != run.labels or trained.encoder.sha256 != run.encoder.sha256:
        return None
    return HeadWeights(*trained.head())


def seen_by(skill: OldSkill, encoder: Embedder, cache: EmbeddingCache, settings: ContinualSettings) -> OldSkill:
    """The same skill with another encoder's vectors: the same examples in the same order, and the same head."""
    usual = skill.run.config.training.embedding_batch_size
    other = replace(skill, encoder=encoder, cache=cache, batch_size=usual)
    rows = _replayed_items(skill, settings)
    vectors = other.embed([skill.items[row].text for row in rows])
    return _with_examples(other, rows, vectors, settings.replay_item_weight)


def _replayed_items(skill: OldSkill, settings: ContinualSettings) -> list[int]:
    """Rows of items to learn again: some of each label, none that says what is held out to judge by."""
    held_out = {wording(one.text) for one in skill.run.instructions() if one.split != "train"}
    kept = [row for row, item in enumerate(skill.items) if not says_one_of(item, held_out)]
    return [kept[place] for place in rows_per_label([skill.items[row].label for row in kept], settings.replay_items)]


def _with_examples(skill: OldSkill, rows: list[int], item_vectors: Vectors, item_weight: float) -> OldSkill:
    """The skill with all its examples; those of the catalogue are its `rows`, whose vectors are `item_vectors`."""
    held_out = (one for one in skill.run.instructions() if one.split != "train")
    instructions, remembered = [*skill.train, *held_out], skill.remembered
    said = [(one.text, one.label) for one in instructions] + [(one.text, one.label) for one in remembered]
    vectors, label_ids = skill.embed([text for text, _ in said]), skill.label_ids([label for _, label in said])
    weights = np.array([1.0] * len(instructions) + [one.weight for one in remembered])
    kinds = np.array(
        [one.split for one in instructions]
        + ["held-out feedback" if one.held_out else "taught feedback" for one in remembered]
    )
    train, validation, test, taught, measured = (
        Examples(vectors[kinds == kind], label_ids[kinds == kind], weights[kinds == kind])
        for kind in (*SPLITS, "taught feedback", "held-out feedback")
    )
    of_items = Examples(
        item_vectors, skill.label_ids([skill.items[row].label for row in rows]), np.full(len(rows), item_weight)
    )
    return replace(
        skill,
        replay=joined(train, taught, of_items),
        validation=validation,
        test=test,
        feedback=measured,
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


def drawn_rows(instructions: int, most: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The rows, ascending, of at most `most` of the training instructions."""
    return np.sort(np.random.default_rng(seed).permutation(instructions)[:most])
