"""A catalogue as a release carries it: flat, memory-mapped files that a step opens without parsing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HISTORY_VECTORS = "history_vectors.npy"
"""Only where histories are read by behaviour, not by the items' text."""


class StringTable:
    """Immutable strings in two arrays, one of all UTF-8 bytes and one of offsets, memory-mapped when opened."""

    def __init__(self, blob: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        """Wrap the arrays: string i is `blob[offsets[i] : offsets[i + 1]]`."""
        self._blob = blob
        self._offsets = offsets

    def __len__(self) -> int:
        """How many strings there are."""
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        """String `index` as UTF-8 bytes."""
        return self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes()

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """The strings at the given rows, as an object array of `bytes` of the same shape."""
        taken = np.empty(rows.shape, dtype=np.object_)
        taken.reshape(-1)[:] = [self[row] for row in rows.reshape(-1)]
        return taken

    @classmethod
    def of(cls, strings: Sequence[str]) -> StringTable:
        """Make a table of strings, in memory."""
        encoded = [text.encode("utf-8") for text in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.bytes.npy` (uint8) and `<name>.offsets.npy` (int64) into a folder."""
        np.save(folder / f"{name}.bytes.npy", self._blob)
        np.save(folder / f"{name}.offsets.npy", self._offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> StringTable:
        """Map the two files that `write` made.

        Raises:
            ValueError: they do not fit each other.
        """
        blob, offsets = _map(folder / f"{name}.bytes.npy"), _map(folder / f"{name}.offsets.npy")
        if offsets[-1] != len(blob):
            raise ValueError(
                f"{name}.bytes.npy has {len(blob)} bytes, its offsets say {offsets[-1]}; export the release again"
            )
        return cls(blob, offsets)


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

    @property
    def history_side(self) -> npt.NDArray[np.float32]:
        """The vectors of the history term, float32 [N, D]."""
        return self.item_vectors if self.history_vectors is None else self.history_vectors

    @classmethod
    def open(cls, folder: Path) -> Catalogue:
        """Open a catalogue that `write` made; arrays are mapped, so instances share their pages.

        Raises:
            ValueError: the files do not fit each other.
        """
        header: dict[str, Any] = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        catalogue = cls(
            release=header["release"],
            item_vectors=_map(folder / "item_vectors.npy"),
            label_index=_map(folder / "label_index.npy"),
            prior=_map(folder / "prior.npy"),
            item_ids=StringTable.open(folder, "item_ids"),
            titles=StringTable.open(folder, "titles"),
            labels=tuple(header["labels"]),
            score_weights=ScoreWeights(**header["score_weights"]),
            history_vectors=_map(folder / HISTORY_VECTORS) if (folder / HISTORY_VECTORS).is_file() else None,
            exclude_history=header.get("exclude_history", False),
        )
        counts = {
            "item_vectors": len(catalogue.item_vectors),
            "history_vectors": len(catalogue.history_side),
            "label_index": len(catalogue.label_index),
            "prior": len(catalogue.prior),
            "item_ids": len(catalogue.item_ids),
            "titles": len(catalogue.titles),
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
        np.save(folder / "item_vectors.npy", np.ascontiguousarray(self.item_vectors, dtype=np.float32))
        if self.history_vectors is not None:
            np.save(folder / HISTORY_VECTORS, np.ascontiguousarray(self.history_vectors, dtype=np.float32))
        np.save(folder / "label_index.npy", np.asarray(self.label_index, dtype=np.int32))
        np.save(folder / "prior.npy", np.asarray(self.prior, dtype=np.float32))
        self.item_ids.write(folder, "item_ids")
        self.titles.write(folder, "titles")
        header = {
            "release": self.release,
            "labels": list(self.labels),
            "score_weights": vars(self.score_weights),
            "exclude_history": self.exclude_history,
        }
        (folder / "catalogue.json").write_text(
            json.dumps(header, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )


def _map(path: Path) -> Any:
    """Memory-map an array read-only, as a plain array: `np.memmap` would follow into every result computed from it."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped.view(np.ndarray)
