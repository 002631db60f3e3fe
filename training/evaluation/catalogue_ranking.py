"""How well the whole catalogue is ranked: the tuned score against BM25 and the base encoder alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.dataset import Item
from training.evaluation.bootstrap import Bootstrap, Floats
from training.evaluation.inputs import Inputs, SplitInputs
from training.metrics import CUT, query_metrics
from training.ranking import CHUNK, RankingExamples
from training.score import Vectors, log_softmax

SYSTEMS = {"tuned": "tuned", "bm25": "BM25 over item texts", "zero_shot": "zero-shot: base encoder"}
METRICS = (f"ndcg@{CUT}", f"recall@{CUT}", f"precision@{CUT}", "mrr")


class Bm25:
    """BM25 (Robertson and Zaragoza 2009; Lucene's variant, k1 = 1.5, b = 0.75) over the items' texts."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Index the catalogue; English stop words are left out, nothing is stemmed."""
        self._items = len(items)
        tokens = bm25s.tokenize([item.text for item in items], show_progress=False)
        self._index: Any = None
        if any(len(ids) for ids in tokens.ids):
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)

    def scores(self, texts: Sequence[str]) -> Vectors:
        """The score of every item, float32 [n, N]; 0 where no word is shared."""
        scores = np.zeros((len(texts), self._items), dtype=np.float32)
        queries = bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
        for row, tokens in enumerate(queries):
            if tokens and self._index is not None:
                scores[row] = self._index.get_scores(tokens)
        return scores


@dataclass(frozen=True)
class Ranked:
    """A system's result for the queries of a split: metrics [n] by name, and the catalogue rows of its best ten."""

    metrics: dict[str, Floats]
    top: npt.NDArray[np.int64]


def rank_catalogue(inputs: Inputs, split: SplitInputs, systems: Sequence[str], bm25: Bm25) -> dict[str, Ranked]:
    """Rank the full catalogue for every instruction of `split`, each of which some item must answer."""
    grades = inputs.grades(split.instructions)
    return {system: _rank(_scores(inputs, split, system, bm25), grades, system) for system in systems}


def _rank(scores: Iterator[Vectors], grades: Sequence[dict[int, float]], name: str) -> Ranked:
    metrics: dict[str, list[float]] = {metric: [] for metric in METRICS}
    top: list[npt.NDArray[np.int64]] = []
    with tqdm(total=len(grades), desc=f"ranking, {name}", unit="instruction", disable=None, leave=False) as bar:
        for chunk in scores:
            for row_scores in chunk:
                for metric, value in query_metrics(row_scores, grades[len(top)]).items():
                    metrics[metric].append(value)
                top.append(best_rows(row_scores, CUT))
            bar.update(len(chunk))
    return Ranked({name: np.array(values) for name, values in metrics.items()}, np.stack(top))


def _scores(inputs: Inputs, split: SplitInputs, system: str, bm25: Bm25) -> Iterator[Vectors]:
    """The scores of every item, a chunk of instructions at a time: [b, N] each."""
    if system == "tuned":
        weights, count = inputs.run.score_weights, len(split)
        examples = RankingExamples(
            split.h, log_softmax(split.logits), [()] * count, [{}] * count, np.ones(count, np.float32)
        )
        for _, features in examples.chunks(inputs.catalogue, weights.history_decay):
            yield np.tensordot(weights.terms(), features, axes=1)
        return
    texts = split.texts
    for start in range(0, len(split), CHUNK):
        part = slice(start, start + CHUNK)
        if system == "bm25":
            yield bm25.scores(texts[part])
        else:
            yield split.base_h[part] @ inputs.base_catalogue.vectors.T


def best_rows(scores: Vectors, count: int) -> npt.NDArray[np.int64]:
    """The places of the `count` best scores, best first; equal scores in catalogue order."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= least)
    best: npt.NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    return best


def compare_rankings(ranked: dict[str, Ranked], bootstrap: Bootstrap) -> dict[str, Any]:
    """Each system's metrics with intervals, and tuned minus the better of the others on the same resamples."""
    measured = {
        system: {metric: bootstrap.mean(values) for metric, values in result.metrics.items()}
        for system, result in ranked.items()
    }
    best = max((name for name in ranked if name != "tuned"), key=lambda name: measured[name][METRICS[0]].value)
    return {
        "instructions": len(ranked["tuned"].top),
        "systems": {
            system: {"title": SYSTEMS[system], **{name: sampled.estimate() for name, sampled in own.items()}}
            for system, own in measured.items()
        },
        "difference": {
            "baseline": best,
            **{name: measured["tuned"][name].minus(measured[best][name]).estimate() for name in METRICS},
        },
    }
