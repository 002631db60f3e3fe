"""Triton step `topk`: instruction vector, logits and history in, the catalogue's best items out."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` of this very release, never another's

from steps.batching import answer_batch, tensor
from steps.ranking import Ranked, Ranker
from steps.recommendation import Query, read_history, read_top_k


class TritonPythonModel:
    """Ranks all requests of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Map the catalogue, measure its labels' items, and count ignored history ids as a metric."""
        self.ranker = Ranker.open(Path(__file__).parent)
        self.catalogue = self.ranker.catalogue
        self.release = np.array([self.catalogue.release.encode()], dtype=np.object_)
        self.labels = np.array([label.encode() for label in self.catalogue.labels], dtype=np.object_)
        self.unknown_items_family = pb_utils.MetricFamily(  # kept: a metric whose family is collected is dead
            name="instructrec_unknown_history_items",
            description="History entries that the catalogue does not hold and that were ignored",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.unknown_items = self.unknown_items_family.Metric(
            labels={"model": args["model_name"], "version": args["model_version"]}
        )
        width = self.catalogue.item_vectors.shape[1]
        self._rank([Query(np.zeros((1, width), np.float32), np.zeros((1, len(self.labels)), np.float32), [[]], 1)])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own k items, or with an error of its own."""
        return answer_batch(requests, self._read, self._rank, self._write)

    def _read(self, request: Any) -> Query:
        instruction = tensor(request, "instruction_vector")
        query = Query(
            instruction=instruction,
            logits=tensor(request, "logits"),
            history=read_history(tensor(request, "history"), rows=len(instruction)),
            k=read_top_k(tensor(request, "top_k")),
        )
        if unknown := self.ranker.unknown_items(query.history):
            self.unknown_items.increment(unknown)
        return query

    def _rank(self, queries: list[Query]) -> list[Ranked]:
        histories = [row for query in queries for row in query.history]
        best = self.ranker.rank(
            np.concatenate([query.instruction for query in queries]),
            np.concatenate([query.logits for query in queries]),
            self.ranker.history_vectors(histories),
            max(query.k for query in queries),
            self.ranker.excluded_rows(histories),
        )
        ends = np.cumsum([len(query.instruction) for query in queries])
        return [best.part(end - len(query.instruction), end, query.k) for query, end in zip(queries, ends, strict=True)]

    def _write(self, best: Ranked) -> list[Any]:
        label_index = self.catalogue.label_index[best.items]
        return [
            pb_utils.Tensor("item_id", self.catalogue.item_ids.take(best.items)),
            pb_utils.Tensor("title", self.catalogue.titles.take(best.items)),
            pb_utils.Tensor("label", self.labels[label_index]),
            pb_utils.Tensor("score", np.ascontiguousarray(best.score)),
            pb_utils.Tensor("reason", np.ascontiguousarray(best.reason)),
            pb_utils.Tensor("release", np.broadcast_to(self.release, (len(best.items), 1)).copy()),
        ]
