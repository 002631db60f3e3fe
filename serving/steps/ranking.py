"""The score of DESIGN.md, and the best k items by it.

`s_i = α·⟨h, e_i⟩ + β·log softmax(u)[label(i)] + γ·⟨history, e_i⟩ + δ·prior_i`: a sum, so that its four terms explain each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .catalogue import Catalogue

MAX_TOP_K = 100
MAX_HISTORY = 1_000
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranked:
    """The best items of each row, best first.

    Attributes:
        items: int64 [rows, k], row numbers in the catalogue.
        score: float32 [rows, k], non-increasing.
        reason: float32 [rows, k, 4]: the score's instruction, label, history and prior terms.
    """

    items: npt.NDArray[np.int64]
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
    """Ranks one catalogue's items, exactly."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Index the item ids, so that a history can be looked up."""
        self.catalogue = catalogue
        self._row_of = {catalogue.item_ids[row]: row for row in range(len(catalogue.item_ids))}

    def history_vectors(self, histories: Sequence[Sequence[bytes]]) -> tuple[Vectors, int]:
        """The decayed mean of each row's known items, zero where there are none.

        Args:
            histories: item ids of each row, newest first; `b""` is padding.

        Returns:
            float32 [rows, H], and how many ids were unknown and therefore ignored.
        """
        vectors = np.zeros((len(histories), self.catalogue.item_vectors.shape[1]), dtype=np.float32)
        unknown = 0
        for row, history in enumerate(histories):
            given = [item_id for item_id in history if item_id]
            known = [self._row_of[item_id] for item_id in given if item_id in self._row_of]
            unknown += len(given) - len(known)
            if known:
                weight = self.catalogue.score_weights.history_decay ** np.arange(len(known), dtype=np.float32)
                vectors[row] = weight @ self.catalogue.item_vectors[known] / weight.sum()
        return vectors, unknown

    def rank(self, instruction: Vectors, logits: Vectors, history: Vectors, k: int) -> Ranked:
        """The best k items of each row.

        Args:
            instruction: float32 [rows, H], normalised instruction vectors `h`.
            logits: float32 [rows, K], the head's `u`.
            history: float32 [rows, H], from `history_vectors`.
            k: how many items; fewer come back only if the catalogue has fewer.

        Returns:
            The items; equal scores keep the catalogue's order, so that answers repeat.
        """
        weights = self.catalogue.score_weights
        # One product for both vector terms: ⟨αh + γ·history, e⟩ reads the item vectors once, which is what this step costs.
        query = weights.alpha * instruction + weights.gamma * history
        label_term = weights.beta * log_softmax(logits)
        score = query @ self.catalogue.item_vectors.T
        score += label_term[:, self.catalogue.label_index]
        score += weights.delta * self.catalogue.prior
        items = _top(score, min(k, score.shape[1]))
        return Ranked(items, *self._explain(items, instruction, label_term, history))

    def _explain(
        self, items: npt.NDArray[np.int64], instruction: Vectors, label_term: Vectors, history: Vectors
    ) -> tuple[Vectors, Vectors]:
        """The four terms of the chosen items, and their sum as the score, so that the reasons always add up to it."""
        weights = self.catalogue.score_weights
        vectors = self.catalogue.item_vectors[items]
        reason = np.empty((*items.shape, 4), dtype=np.float32)
        reason[..., 0] = weights.alpha * np.einsum("rkh,rh->rk", vectors, instruction)
        reason[..., 1] = np.take_along_axis(label_term, self.catalogue.label_index[items].astype(np.int64), axis=1)
        reason[..., 2] = weights.gamma * np.einsum("rkh,rh->rk", vectors, history)
        reason[..., 3] = weights.delta * self.catalogue.prior[items]
        # Summed in another order than above, the last bit may differ: keep the promised order of scores.
        score = np.minimum.accumulate(reason.sum(axis=-1), axis=1)
        return score, reason


def _top(score: Vectors, k: int) -> npt.NDArray[np.int64]:
    """Column numbers of the k largest of each row, largest first, ties by column number."""
    items = np.empty((len(score), k), dtype=np.int64)
    for row, values in enumerate(score):
        threshold = np.partition(values, len(values) - k)[len(values) - k]
        above = np.flatnonzero(values > threshold)
        chosen = np.concatenate([above, np.flatnonzero(values == threshold)[: k - len(above)]])
        items[row] = chosen[np.argsort(-values[chosen], kind="stable")]
    return items
