"""From checked queries to the response's tensors: what the `topk` and the `fused` step have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batching import tensor
from .ranking import Ranked, Ranker, Vectors
from .recommendation import Wish, read_history, read_top_k


class Recommender:
    """A release's catalogue, ready to recommend from."""

    def __init__(self, folder: Path, model: str, version: str) -> None:
        """Map the catalogue, measure its labels' items, and count ignored history ids as a metric.

        Args:
            folder: where the catalogue's files are.
            model: the name of the Triton model that this is part of, for the metric.
            version: its version.
        """
        self._ranker = Ranker.open(folder)
        self.catalogue = self._ranker.catalogue
        self._release = np.array([self.catalogue.release.encode()], dtype=np.object_)
        self._labels = np.array([label.encode() for label in self.catalogue.labels], dtype=np.object_)
        self._unknown_items_family = pb_utils.MetricFamily(  # kept: a metric whose family is collected is dead
            name="instructrec_unknown_history_items",
            description="History entries that the catalogue does not hold and that were ignored",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._unknown_items = self._unknown_items_family.Metric(labels={"model": model, "version": version})
        self._unknown = 0
        width = self.catalogue.item_vectors.shape[1]
        self.rank(np.zeros((1, width), np.float32), np.zeros((1, len(self._labels)), np.float32), [Wish([[]], 0, 1)])

    def read(self, request: Any, rows: int) -> Wish:
        """Check a request's `history` and `top_k`, and find the history's items.

        Args:
            request: Triton's.
            rows: how many rows the request has.

        Raises:
            InvalidRequestError: see `read_history` and `read_top_k`; or an input is missing.
        """
        histories = read_history(tensor(request, "history"), rows)
        k = read_top_k(tensor(request, "top_k"))
        found = [self._ranker.find(history) if history else ([], 0) for history in histories]
        return Wish([known for known, _ in found], sum(unknown for _, unknown in found), k)

    def note_unknown(self, wish: Wish) -> None:
        """Count the entries of a request's history that name no item, until `report` is called."""
        self._unknown += wish.unknown

    def report(self) -> None:
        """Add what was counted to the metric, once a batch: each time is a round trip to the server's process."""
        if self._unknown:
            self._unknown_items.increment(self._unknown)
            self._unknown = 0

    def close(self) -> None:
        """Let go of the metric while there is a server to tell, for later the stub would crash."""
        del self._unknown_items, self._unknown_items_family

    def rank(self, instruction: Vectors, logits: Vectors, wishes: Sequence[Wish]) -> list[Ranked]:
        """The best items of every request, with one product over the item vectors.

        Args:
            instruction: float32 [rows, H], the rows of all requests.
            logits: float32 [rows, K], likewise.
            wishes: what each request wants, in the order of the rows.
        """
        histories = [row for wish in wishes for row in wish.history]
        best = self._ranker.rank(
            instruction,
            logits,
            self._ranker.mean_vectors(histories if self.catalogue.score_weights.gamma else [[] for _ in histories]),
            [wish.k for wish in wishes for _ in wish.history],
            self._ranker.excluded(histories),
        )
        ends = np.cumsum([len(wish.history) for wish in wishes]).tolist()
        return [best.part(end - len(wish.history), end, wish.k) for wish, end in zip(wishes, ends, strict=True)]

    def tensors(self, best: Ranked) -> list[Any]:
        """The outputs of the wire contract."""
        label_index = self.catalogue.label_index[best.items]
        return [
            pb_utils.Tensor("item_id", self.catalogue.item_ids.take(best.items)),
            pb_utils.Tensor("title", self.catalogue.titles.take(best.items)),
            pb_utils.Tensor("label", self._labels[label_index]),
            pb_utils.Tensor("score", np.ascontiguousarray(best.score)),
            pb_utils.Tensor("reason", np.ascontiguousarray(best.reason)),
            pb_utils.Tensor("release", np.full((len(best.items), 1), self._release[0], dtype=np.object_)),
        ]
