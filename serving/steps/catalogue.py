"""A catalogue as a release carries it: flat, memory-mapped files that a step opens without parsing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .strings import RowLookup, StringTable, map_array

__all__ = ["Catalogue", "ScoreWeights", "StringTable"]

ITEM_VECTORS = "item_vectors.npy"
HISTORY_VECTORS = "history_vectors.npy"
"""Only where histories are read by behaviour, not by the items' text."""
PLACE = "place.npy"
"""Only where the rows do not lie in the dataset's order."""


@dataclass(frozen=True)
class ScoreWeights:
    """The learned weights of the score's four terms, and how fast a history's older items fade.

    The weight of the j-th newest item of a history is `history_decay ** j`.
    """

    alpha: float
    beta: float
    gamma: float
    delta: float
    history_decay: float


@dataclass(frozen=True)
class Catalogue:
    """Everything about the items that ranking needs; row i of every array is item i.

    Attributes:
        release: the release these items belong to, as every response names it.
        item_vectors: float32 [N, H], L2-normalised.
        label_index: int32 [N], the row of each item's label in `labels`.
        prior: float32 [N].
        item_ids: the items' ids.
        titles: the items' titles.
        labels: the label names, in the order of the head's logits.
        score_weights: the weights of the score's terms.
        history_vectors: float32 [N, D], what the history term multiplies; None where that is `item_vectors`.
        exclude_history: whether the items of a request's history are left out of its answer.
        max_history: how many of a history's newest items its vector is made of; None: all, as before this was written
            down.
        place: int32 [N], each item's place in the dataset's catalogue, which decides between equal scores; None where
            that is the row itself.
        lookup: finds the rows of item ids; None until the catalogue is written.
        folder: where the catalogue was opened; None for one in memory.
    """

    release: str
    item_vectors: npt.NDArray[np.float32]
    label_index: npt.NDArray[np.int32]
    prior: npt.NDArray[np.float32]
    item_ids: StringTable
    titles: StringTable
    labels: tuple[str, ...]
    score_weights: ScoreWeights
    history_vectors: npt.NDArray[np.float32] | None = None
    exclude_history: bool = False
    max_history: int | None = None
    place: npt.NDArray[np.int32] | None = None
    lookup: RowLookup | None = None
    folder: Path | None = None

    @property
    def history_side(self) -> npt.NDArray[np.float32]:
        """The vectors of the history term, float32 [N, D]."""
        return self.item_vectors if self.history_vectors is None else self.history_vectors

    def row_lookup(self) -> RowLookup:
        """What finds the rows of item ids; made here for a catalogue in memory."""
        return self.lookup or RowLookup.of(self.item_ids)

    def reordered(self, rows: npt.NDArray[np.int64]) -> Catalogue:
        """The same catalogue with its rows in another order, in memory: row i is this one's row `rows[i]`."""
        return replace(
            self,
            item_vectors=self.item_vectors[rows],
            label_index=self.label_index[rows],
            prior=self.prior[rows],
            item_ids=self.item_ids.reordered(rows),
            titles=self.titles.reordered(rows),
            history_vectors=None if self.history_vectors is None else self.history_vectors[rows],
            place=(np.arange(len(self.prior), dtype=np.int32) if self.place is None else self.place)[rows],
            lookup=None,
            folder=None,
        )

    @classmethod
    def open(cls, folder: Path) -> Catalogue:
        """Open a catalogue that `write` made; arrays are mapped, so instances share their pages.

        Raises:
            ValueError: the files do not fit each other.
        """
        header: dict[str, Any] = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        item_ids = StringTable.open(folder, "item_ids")
        catalogue = cls(
            release=header["release"],
            item_vectors=map_array(folder / ITEM_VECTORS),
            label_index=map_array(folder / "label_index.npy"),
            prior=map_array(folder / "prior.npy"),
            item_ids=item_ids,
            titles=StringTable.open(folder, "titles"),
            labels=tuple(header["labels"]),
            score_weights=ScoreWeights(**header["score_weights"]),
            history_vectors=map_array(folder / HISTORY_VECTORS) if (folder / HISTORY_VECTORS).is_file() else None,
            exclude_history=header.get("exclude_history", False),
            max_history=header.get("max_history"),
            place=map_array(folder / PLACE) if (folder / PLACE).is_file() else None,
            lookup=RowLookup.open(folder, "item_ids", item_ids),
            folder=folder,
        )
        counts = {
            "item_vectors": len(catalogue.item_vectors),
            "history_vectors": len(catalogue.history_side),
            "label_index": len(catalogue.label_index),
            "prior": len(catalogue.prior),
            "item_ids": len(catalogue.item_ids),
            "titles": len(catalogue.titles),
            "place": len(catalogue.prior if catalogue.place is None else catalogue.place),
        }
        if len(set(counts.values())) != 1:
            raise ValueError(
                f"the catalogue's files differ in their number of items: {counts}; export the release again"
            )
        rows = catalogue.label_index
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(catalogue.labels):
            raise ValueError(
                f"label_index.npy names a label beyond the {len(catalogue.labels)} there are; export the release again"
            )
        return catalogue

    def write(self, folder: Path) -> None:
        """Write the catalogue's files into an existing folder, in the dtypes that this class names."""
        np.save(folder / ITEM_VECTORS, np.ascontiguousarray(self.item_vectors, dtype=np.float32))
        if self.history_vectors is not None:
            np.save(folder / HISTORY_VECTORS, np.ascontiguousarray(self.history_vectors, dtype=np.float32))
        np.save(folder / "label_index.npy", np.asarray(self.label_index, dtype=np.int32))
        np.save(folder / "prior.npy", np.asarray(self.prior, dtype=np.float32))
        if self.place is not None:
            np.save(folder / PLACE, self.place)
        self.item_ids.write(folder, "item_ids")
        RowLookup.of(self.item_ids).write(folder, "item_ids")
        self.titles.write(folder, "titles")
        header = {
            "release": self.release,
            "labels": list(self.labels),
            "score_weights": vars(self.score_weights),
            "exclude_history": self.exclude_history,
            "max_history": self.max_history,
        }
        (folder / "catalogue.json").write_text(
            json.dumps(header, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
