"""What a graph costs the task itself: the head's accuracy and the ranking, against torch on the same instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from training.dataset import Instruction
from training.evaluation.bootstrap import Bootstrap
from training.metrics import query_metrics
from training.relevance import Relevance
from training.run import Run
from training.score import CatalogueSide, log_softmax

__all__ = ["Task", "TaskComparison"]

Floats = npt.NDArray[np.float32]


_CHUNK = 64  # instructions scored at once


class TaskComparison(BaseModel):
    """One metric of torch and of a graph over the same instructions; all numbers are shares of 1.

    Attributes:
        name: The metric.
        instructions: How many instructions it was measured on.
        torch: Its mean with torch's vectors.
        graph: Its mean with the graph's.
        difference: graph - torch.
        low: Lower end of the difference's 95 % interval (paired percentile bootstrap).
        high: Upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    instructions: int
    torch: float
    graph: float
    difference: float
    low: float
    high: float


class Task:
    """The held-out instructions with what answers them, and how a run scores items."""

    def __init__(self, run: Run, instructions: Sequence[Instruction]) -> None:
        """Reads the run's catalogue.

        Args:
            run: The run.
            instructions: Those that are verified on, in the order of the vectors to come.
        """
        items = run.catalogue()
        relevance = Relevance(items)
        row_of = {label: row for row, label in enumerate(run.labels)}
        self._labels = np.array([row_of.get(one.label, -1) for one in instructions])
        self._grades = [dict(relevance.grades(one)) for one in instructions]
        self._weights = run.score_weights
        self._catalogue = CatalogueSide(
            run.item_vectors(), [row_of[item.label] for item in items], [item.prior for item in items]
        )

    def compare(self, torch: tuple[Floats, Floats], graph: tuple[Floats, Floats]) -> list[TaskComparison]:
        """Measures both; a metric that no instruction here has an answer for is left out.

        Args:
            torch: Vectors [n, H] and logits [n, K], row for row the instructions.
            graph: The same of the graph.
        """
        sides = [self.measure(*side) for side in (torch, graph)]
        pairs = {name: [side[name][~np.isnan(side[name])] for side in sides] for name in sides[0]}
        return [_compare(name, *values) for name, values in pairs.items() if len(values[0])]

    def measure(self, vectors: Floats, logits: Floats) -> dict[str, npt.NDArray[np.float64]]:
        """Each metric's value for each instruction [n]; NaN where it has no answer here.

        Args:
            vectors: [n, H], row for row the instructions.
            logits: [n, K].
        """
        answered = np.array([row for row, grades in enumerate(self._grades) if grades], dtype=np.int64)
        hits = np.where(self._labels >= 0, logits.argmax(axis=1) == self._labels, np.nan)
        gains = np.full(len(vectors), np.nan)
        gains[answered] = self._ranking(vectors, logits, answered)
        return {"top-1 label accuracy": hits, "NDCG@10": gains}

    def _ranking(self, vectors: Floats, logits: Floats, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """NDCG@10 of each instruction by the run's own score, without a history."""
        if not len(rows):
            return np.zeros(0)
        catalogue, (alpha, beta, _, delta) = self._catalogue, self._weights.terms()
        prior = delta * catalogue.priors
        gains: list[float] = []
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            scores = alpha * vectors[part] @ catalogue.vectors.T
            scores += (beta * log_softmax(logits[part]))[:, catalogue.label_ids] + prior
            gains += [query_metrics(one, self._grades[row])["ndcg@10"] for one, row in zip(scores, part, strict=True)]
        return np.array(gains)


def _compare(name: str, torch: npt.ArrayLike, graph: npt.ArrayLike) -> TaskComparison:
    values = [np.asarray(side, dtype=np.float64) for side in (torch, graph)]
    bootstrap = Bootstrap(len(values[0]), seed=0)
    before, after = (bootstrap.mean(side) for side in values)
    estimate = after.minus(before).estimate()
    return TaskComparison(
        name=name,
        instructions=len(values[0]),
        torch=before.value,
        graph=after.value,
        difference=estimate.value,
        low=estimate.low,
        high=estimate.high,
    )
