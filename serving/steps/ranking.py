"""The score of an item, and the best k items by it.

`s_i = α·⟨h, e_i⟩ + β·log softmax(u)[label(i)] + γ·⟨history, e_i⟩ + δ·prior_i`: a sum, so that its four terms explain
each item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .catalogue import HISTORY_VECTORS, ITEM_VECTORS, Catalogue
from .grouped_scan import GroupedScan, Rows, Vectors
from .item_index import ItemIndex
from .limits import MAX_HISTORY, MAX_TOP_K
from .row_file import RowFile

__all__ = ["MAX_HISTORY", "MAX_TOP_K", "Ranked", "Ranker", "Vectors", "log_softmax"]

SETTLED_TOGETHER = 8_192
"""Candidates whose vectors are held at a time; only many equal scores make more than some dozens a row."""


@dataclass(frozen=True)
class Ranked:
    """The best items of each row, best first.

    Attributes:
        items: int64 [rows, k], row numbers in the catalogue.
        score: float32 [rows, k], non-increasing.
        reason: float32 [rows, k, 4]: the score's instruction, label, history and prior terms.
    """

    items: Rows
    score: Vectors
    reason: Vectors

    def part(self, start: int, stop: int, k: int) -> Ranked:
        """The first k items of rows `start` to `stop`."""
        rows = slice(start, stop)
        return Ranked(self.items[rows, :k], self.score[rows, :k], self.reason[rows, :k])


def log_softmax(logits: Vectors) -> Vectors:
    """Numerically safe `log softmax` over the last axis, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float32)


class Ranker:
    """Ranks one catalogue's items by their full score.

    Candidates come from a scan that leaves out whole labels but no item that counts, or from an approximate index; what
    is answered is always ranked by the exact score.
    """

    def __init__(self, catalogue: Catalogue, index: ItemIndex | None = None) -> None:
        """Measure the labels' items, or take the index instead.

        Args:
            catalogue: the items; with an index, in the order of its cells.
            index: finds candidates where a scan would be too slow.
        """
        self.catalogue = catalogue
        self._lookup = catalogue.row_lookup()
        # With an index the vectors stay in their files.
        kept_in = catalogue.folder if index else None
        self._item_vectors = _reader(catalogue.item_vectors, kept_in, ITEM_VECTORS)
        self._history_side = self._item_vectors
        if catalogue.history_vectors is not None:
            self._history_side = _reader(catalogue.history_vectors, kept_in, HISTORY_VECTORS)
        self._finder = index or _LabelScan(catalogue)

    @classmethod
    def open(cls, folder: Path) -> Ranker:
        """Open a catalogue, and its index if it has one.

        Raises:
            ImportError: there is an index, and FAISS is not installed.
            ValueError: the files do not fit each other.
        """
        catalogue = Catalogue.open(folder)
        return cls(catalogue, ItemIndex.open(folder, catalogue) if ItemIndex.is_in(folder) else None)

    def history_vectors(self, histories: Sequence[Sequence[bytes]]) -> Vectors:
        """The decayed mean of each row's newest known items, zero where there are none.

        Args:
            histories: item ids of each row, newest first; `b""` is padding, unknown ids are passed over. The newest
                `max_history` of the release count, each item once where the history is left out of the answer: the
                weights of the score were learned on such histories.

        Returns:
            float32 [rows, D], D the width of the catalogue's history vectors.
        """
        return self.mean_vectors(self.known_rows(histories))

    def mean_vectors(self, histories: Sequence[Sequence[int]]) -> Vectors:
        """`history_vectors` of histories from `known_rows`."""
        vectors = np.zeros((len(histories), self.catalogue.history_side.shape[1]), dtype=np.float32)
        for row, entries in enumerate(histories):
            if known := self._counted(entries):
                weight = self.catalogue.score_weights.history_decay ** np.arange(len(known), dtype=np.float32)
                vectors[row] = weight @ self._history_side(np.array(known)) / weight.sum()
        return vectors

    def _counted(self, known: Sequence[int]) -> list[int]:
        """The rows of a history that its vector is made of, as `training.history` has them."""
        rows = dict.fromkeys(known) if self.catalogue.exclude_history else known
        return list(rows)[: self.catalogue.max_history]

    def known_rows(self, histories: Sequence[Sequence[bytes]]) -> list[list[int]]:
        """The catalogue rows of each history, newest first, without padding and unknown ids."""
        return [self.find(history)[0] for history in histories]

    def find(self, history: Sequence[bytes]) -> tuple[list[int], int]:
        """The catalogue rows of one history, newest first, and how many entries, padding left out, name no item."""
        found = self._lookup.rows(history)
        known = [row for row in found if row >= 0]
        return known, len(found) - len(known) - history.count(b"")

    def excluded_rows(self, histories: Sequence[Sequence[bytes]]) -> list[list[int]]:
        """The catalogue rows that each history keeps out of its answer: none, unless the release says so.

        A history that would leave fewer items than the largest `top_k` keeps none out: answers are never shorter for
        it, and do not depend on what else is in the batch.
        """
        return self.excluded(self.known_rows(histories) if self.catalogue.exclude_history else [[] for _ in histories])

    def excluded(self, histories: Sequence[Sequence[int]]) -> list[list[int]]:
        """`excluded_rows` of histories from `known_rows`; all of a history counts, not its newest items alone."""
        if not self.catalogue.exclude_history:
            return [[] for _ in histories]
        spare = len(self.catalogue.item_vectors) - MAX_TOP_K
        return [own if len(own) <= spare else [] for own in (sorted(set(rows)) for rows in histories)]

    def unknown_items(self, histories: Sequence[Sequence[bytes]]) -> int:
        """How many entries, padding left out, name no item of this catalogue."""
        return sum(self.find(history)[1] for history in histories)

    def rank(
        self,
        instruction: Vectors,
        logits: Vectors,
        history: Vectors,
        k: int | Sequence[int],
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> Ranked:
        """The best k items of each row.

        Args:
            instruction: float32 [rows, H], normalised instruction vectors `h`.
            logits: float32 [rows, K], the head's `u`.
            history: float32 [rows, D], from `history_vectors`.
            k: how many items, of all rows or of each; fewer come back only if the catalogue has fewer.
            excluded: catalogue rows to leave out of each answer, from `excluded_rows`; at least k must be left.

        Returns:
            The items; equal scores keep the catalogue's order, so that answers repeat. All rows are as long as the
            largest k: what a row holds beyond its own is to be cut off.
        """
        weights = self.catalogue.score_weights
        label_term = weights.beta * log_softmax(logits)
        own = np.minimum(np.broadcast_to(np.asarray(k, np.int64), len(instruction)), len(self.catalogue.prior))
        candidates = self._finder.candidates(instruction, label_term, history, own, excluded)
        return self._settle(candidates, instruction, label_term, history, int(own.max()))

    def _settle(
        self, candidates: Sequence[Rows], instruction: Vectors, label_term: Vectors, history: Vectors, k: int
    ) -> Ranked:
        """Rank each row's candidates by the sum of their four terms, which is the score that counts."""
        items = np.concatenate(candidates)
        row_of = np.repeat(np.arange(len(candidates)), [len(own) for own in candidates])
        reason = np.empty((len(items), 4), dtype=np.float32)
        for start in range(0, len(items), SETTLED_TOGETHER):
            part = slice(start, start + SETTLED_TOGETHER)
            reason[part] = self._reason(items[part], row_of[part], instruction, label_term, history)
        score = reason.sum(axis=-1)
        if not np.isfinite(score).all():
            raise FloatingPointError("a score is not finite")
        place = items if self.catalogue.place is None else self.catalogue.place[items]
        order = np.lexsort((place, -score, row_of))
        ends = np.cumsum([len(own) for own in candidates])[:, None]
        starts = ends - [[len(own)] for own in candidates]
        best = order[np.minimum(starts + np.arange(k), ends - 1)]
        return Ranked(items[best], score[best], reason[best])

    def _reason(
        self, items: Rows, row_of: Rows, instruction: Vectors, label_term: Vectors, history: Vectors
    ) -> Vectors:
        """The four terms of some items, each for its row of the batch, float32 [items, 4].

        Their sum is the score that counts: equal items get equal ones.
        """
        weights = self.catalogue.score_weights
        reason = np.zeros((len(items), 4), dtype=np.float32)
        vectors = self._item_vectors(items)
        reason[:, 0] = weights.alpha * np.einsum("nh,nh->n", vectors, instruction[row_of])
        reason[:, 1] = label_term[row_of, self.catalogue.label_index[items]]
        if history.any():
            side = vectors if self.catalogue.history_vectors is None else self._history_side(items)
            reason[:, 2] = weights.gamma * np.einsum("nd,nd->n", side, history[row_of])
        reason[:, 3] = weights.delta * self.catalogue.prior[items]
        return reason


class _LabelScan:
    """Candidates from a scan by label, exactly."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Bring the items of a label together, unless they lie so already, and measure the labels."""
        self._weights = catalogue.score_weights
        label_index, parts = catalogue.label_index, [catalogue.item_vectors]
        if catalogue.history_vectors is not None:
            parts.append(catalogue.history_vectors)
        prior = catalogue.prior
        self._row_of: Rows | None = None
        if (np.diff(label_index) < 0).any():
            self._row_of = np.argsort(label_index, kind="stable")
            label_index, prior = label_index[self._row_of], prior[self._row_of]
            parts = [part[self._row_of] for part in parts]
            self._member_of = np.argsort(self._row_of)
        starts = np.searchsorted(label_index, np.arange(len(catalogue.labels) + 1))
        self._scan = GroupedScan(parts, np.float32(self._weights.delta) * prior, starts, narrow=True)
        self._has_history_side = len(parts) == 2

    def candidates(
        self,
        instruction: Vectors,
        label_term: Vectors,
        history: Vectors,
        k: Rows,
        excluded: Sequence[Sequence[int]] | None,
    ) -> list[Rows]:
        """Each row's items that may be among its best k, in no order."""
        weights, need = self._weights, int(k.max())
        if self._has_history_side:
            queries = [weights.alpha * instruction, weights.gamma * history]
        else:
            # One product: ⟨αh + γ·history, e⟩ reads the item vectors, this step's whole cost, once.
            queries = [weights.alpha * instruction + weights.gamma * history]
        if self._row_of is None:
            return [members for members, _ in self._scan.best(queries, label_term, need, excluded)]
        moved = None if excluded is None else [self._member_of[list(own)].tolist() for own in excluded]
        return [self._row_of[members] for members, _ in self._scan.best(queries, label_term, need, moved)]


def _reader(vectors: Vectors, folder: Path | None, name: str) -> Callable[[Rows], Vectors]:
    """Takes rows of a matrix: from its array, or from its file, where it is too large to be kept in memory."""
    return vectors.__getitem__ if folder is None else RowFile(folder / name).take
