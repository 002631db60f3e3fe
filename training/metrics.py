"""How good labels and rankings are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.ranking import RankingExamples
from training.score import CatalogueSide, ScoreWeights, Vectors

CUT = 10


def label_accuracy(scores: Vectors, label_ids: npt.NDArray[np.int64]) -> dict[str, float]:
    """Top-1 and top-3 accuracy of label scores [n, K]; ties go to the lower label id."""
    ranked = np.argsort(-scores, axis=1, kind="stable")
    hits = ranked == label_ids[:, None]
    return {
        "top1_accuracy": float(hits[:, :1].any(axis=1).mean()),
        "top3_accuracy": float(hits[:, :3].any(axis=1).mean()),
    }


def zero_shot_label_scores(h: Vectors, catalogue: CatalogueSide, labels: int) -> Vectors:
    """The similarity of each label's nearest item, float32 [n, K]: what a label is worth without any tuning."""
    scores = np.full((len(h), labels), -np.inf, dtype=np.float32)
    order = np.argsort(catalogue.label_ids, kind="stable")
    present, starts = np.unique(catalogue.label_ids[order], return_index=True)
    for start in range(0, len(h), 64):
        similarities = h[start : start + 64] @ catalogue.vectors.T
        scores[start : start + 64, present] = np.maximum.reduceat(similarities[:, order], starts, axis=1)
    return scores


def report(predicted: npt.NDArray[np.int64], label_ids: npt.NDArray[np.int64], labels: Sequence[str]) -> str:
    """scikit-learn's classification report over the labels that occur."""
    from sklearn.metrics import classification_report  # noqa: PLC0415 - takes longer to load than all else here

    occurring = sorted({*predicted.tolist(), *label_ids.tolist()})
    names = [labels[label] for label in occurring]
    text: str = classification_report(
        label_ids, predicted, labels=occurring, target_names=names, digits=3, zero_division=0
    )
    return text


def ranking_metrics(examples: RankingExamples, catalogue: CatalogueSide, weights: ScoreWeights) -> dict[str, float]:
    """NDCG, recall and precision at 10 and the mean reciprocal rank, over the full catalogue.

    NDCG uses the grades as gains and 1 / log2(rank + 1) as discount (Järvelin and Kekäläinen 2002). Recall divides by
    all relevant items, so it is low where many are. Equal scores rank in catalogue order, as they do when served.
    """
    sums: dict[str, float] = {f"ndcg@{CUT}": 0.0, f"recall@{CUT}": 0.0, f"precision@{CUT}": 0.0, "mrr": 0.0}
    for part, features in examples.chunks(catalogue, weights.history_decay):
        scores = np.tensordot(weights.terms(), features, axes=1)
        scores[examples.excluded_cells(part)] = -np.inf
        for row_scores, grades in zip(scores, examples.grades[part], strict=True):
            for name, value in query_metrics(row_scores, grades).items():
                sums[name] += value
    return {name: value / len(examples) for name, value in sums.items()}


def query_metrics(scores: Vectors, grades: Mapping[int, float]) -> dict[str, float]:
    """The metrics of `ranking_metrics` for one query: scores [N] and the grades above 0 of some catalogue rows."""
    found = np.array([grades.get(row, 0.0) for row in best_rows(scores, CUT).tolist()])
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    ideal = np.sort(list(grades.values()))[::-1][:CUT]
    hits = int(np.count_nonzero(found))
    rows = np.sort(list(grades))
    first = int(rows[np.argmax(scores[rows])])  # the best of the relevant ones, the first of equals
    before = np.count_nonzero(scores > scores[first]) + np.count_nonzero(scores[:first] == scores[first])
    return {
        f"ndcg@{CUT}": float(found @ discounts[: len(found)] / (ideal @ discounts[: len(ideal)])),
        f"recall@{CUT}": hits / len(grades),
        f"precision@{CUT}": hits / CUT,
        "mrr": 1 / (1 + before),
    }


def best_rows(scores: Vectors, count: int) -> npt.NDArray[np.int64]:
    """The rows of the `count` highest scores [N], best first, equal ones in row order; all rows if there are fewer."""
    if count < len(scores):
        bar = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= bar)
    else:
        rows = np.arange(len(scores))
    ranked: npt.NDArray[np.int64] = rows[np.argsort(-scores[rows], kind="stable")][:count]
    return ranked


def rounded(tree: Any, digits: int = 5) -> Any:
    """A copy of nested metrics with every float rounded, for people to read."""
    if isinstance(tree, dict):
        return {key: rounded(value, digits) for key, value in tree.items()}
    return round(tree, digits) if isinstance(tree, float) else tree
