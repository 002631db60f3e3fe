"""Triton step `topk`: instruction vector, logits and history in, the catalogue's best items out."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` of this very release, never another's

from steps.batching import answer_batch, tensor
from steps.ranking import Ranked, Vectors
from steps.recommendation import Wish
from steps.recommender import Recommender

Query = tuple[Vectors, Vectors, Wish]


class TritonPythonModel:
    """Ranks all requests of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the catalogue."""
        self.recommender = Recommender(Path(__file__).parent, args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own k items, or with an error of its own."""
        responses = answer_batch(requests, self._read, self._rank, self.recommender.tensors)
        self.recommender.report()
        return responses

    def finalize(self) -> None:
        """Let go of what the server holds."""
        self.recommender.close()

    def _read(self, request: Any) -> Query:
        instruction = tensor(request, "instruction_vector")
        logits = tensor(request, "logits")
        wish = self.recommender.read(request, rows=len(instruction))
        self.recommender.note_unknown(wish)
        return instruction, logits, wish

    def _rank(self, queries: list[Query]) -> list[Ranked]:
        instruction, logits, wishes = zip(*queries, strict=True)
        return self.recommender.rank(np.concatenate(instruction), np.concatenate(logits), wishes)
