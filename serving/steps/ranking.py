"""The score of an item, and the best k items by it.

`s_i = α·⟨h, e_i⟩ + β·log softmax(u)[label(i)] + γ·⟨history, e_i⟩ + δ·prior_i`: a sum, so that its four terms explain
each item.
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

    def history_vectors(self, histories: Sequence[Sequence[bytes]]) -> Vectors:
        """The decayed mean of each row's known items, zero where there are none.

        Args:
            histories: item ids of each row, newest first; `b""` is padding, unknown ids are passed over.

        Returns:
            float32 [rows, D], D the width of the catalogue's history vectors.
        """
        side = self.catalogue.history_side
        vectors = np.zeros((len(histories), side.shape[1]), dtype=np.float32)
        for row, known in enumerate(self.known_rows(histories)):
            if known:
                weight = self.catalogue.score_weights.history_decay ** np.arange(len(known), dtype=np.float32)
                vectors[row] = weight @ side[known] / weight.sum()
        return vectors

    def known_rows(self, histories: Sequence[Sequence[bytes]]) -> list[list[int]]:
        """The catalogue rows of each history, newest first, without padding and unknown ids."""
        return [[self._row_of[item_id] for item_id in history if item_id in self._row_of] for history in histories]

    def excluded_rows(self, histories: Sequence[Sequence[bytes]]) -> list[list[int]]:
        """The catalogue rows that each history keeps out of its answer: none, unless the release says so.

        A history that would leave fewer items than the largest `top_k` keeps none out: answers are never shorter for
        it, and do not depend on what else is in the batch.
        """
        if not self.catalogue.exclude_history:
            return [[] for _ in histories]
        spare = len(self.catalogue.item_vectors) - MAX_TOP_K
        return [own if len(own) <= spare else [] for own in (sorted(set(r)) for r in self.known_rows(histories))]

    def unknown_items(self, histories: Sequence[Sequence[bytes]]) -> int:
        """How many entries, padding left out, name no item of this catalogue."""
        return sum(item_id not in self._row_of for history in histories for item_id in history if item_id)

    def rank(
        self,
        instruction: Vectors,
        logits: Vectors,
        history: Vectors,
        k: int,
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> Ranked:
        """The best k items of each row.

        Args:
            instruction: float32 [rows, H], normalised instruction vectors `h`.
            logits: float32 [rows, K], the head's `u`.
            history: float32 [rows, D], from `history_vectors`.
            k: how many items; fewer come back only if the catalogue has fewer.
            excluded: catalogue rows to leave out of each answer, from `excluded_rows`; at least k must be left.

        Returns:
            The items; equal scores keep the catalogue's order, so that answers repeat.
        """
        weights = self.catalogue.score_weights
        label_term = weights.beta * log_softmax(logits)
        score = self._products(instruction, history)
        score += label_term[:, self.catalogue.label_index]
        score += weights.delta * self.catalogue.prior
        if not np.isfinite(score).all():
            raise FloatingPointError("a score is not finite")
        k = min(k, score.shape[1])
        ranked = Ranked(
            np.empty((len(score), k), np.int64),
            np.empty((len(score), k), np.float32),
            np.empty((len(score), k, 4), np.float32),
        )
        for row, values in enumerate(score):
            if excluded and excluded[row]:
                values[list(excluded[row])] = -np.inf
            candidates = _candidates(values, k)
            reason = self._reason(candidates, instruction[row], label_term[row], history[row])
            exact = reason.sum(axis=-1)
            best = np.argsort(-exact, kind="stable")[:k]
            ranked.items[row], ranked.score[row], ranked.reason[row] = candidates[best], exact[best], reason[best]
        return ranked

    def _products(self, instruction: Vectors, history: Vectors) -> Vectors:
        """The instruction and the history term together, float32 [rows, N]."""
        weights = self.catalogue.score_weights
        if self.catalogue.history_vectors is None:
            # One product: ⟨αh + γ·history, e⟩ reads the item vectors, this step's whole cost, once.
            query = weights.alpha * instruction + weights.gamma * history
            return np.asarray(query @ self.catalogue.item_vectors.T, dtype=np.float32)
        score = (weights.alpha * instruction) @ self.catalogue.item_vectors.T
        if history.any():
            score += (weights.gamma * history) @ self.catalogue.history_vectors.T
        return np.asarray(score, dtype=np.float32)

    def _reason(
        self, items: npt.NDArray[np.int64], instruction: Vectors, label_term: Vectors, history: Vectors
    ) -> Vectors:
        """The four terms of some items, float32 [items, 4].

        Their sum is the score that counts: equal items get equal ones.
        """
        weights = self.catalogue.score_weights
        vectors = self.catalogue.item_vectors[items]
        reason = np.empty((len(items), 4), dtype=np.float32)
        reason[:, 0] = weights.alpha * np.einsum("ih,h->i", vectors, instruction)
        reason[:, 1] = label_term[self.catalogue.label_index[items]]
        reason[:, 2] = weights.gamma * np.einsum("id,d->i", self.catalogue.history_side[items], history)
        reason[:, 3] = weights.delta * self.catalogue.prior[items]
        return reason


ROUNDING = 1e-5
"""How far, relative to the largest score, the fast product may be from the sum of the four terms."""


def _candidates(score: Vectors, k: int) -> npt.NDArray[np.int64]:
    """The columns that may be among the k best once rounding is taken out, ascending.

    A matrix product does not round every column alike, so that equal items would not stay in the catalogue's order.
    """
    kth = np.partition(score, len(score) - k)[len(score) - k]
    margin = ROUNDING * max(1.0, float(np.abs(score[np.isfinite(score)]).max()))
    return np.flatnonzero(score >= kth - margin)
