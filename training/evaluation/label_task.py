"""How well labels are told apart: accuracy and macro-F1 with intervals, and the tuned head against plain baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from training.evaluation.bootstrap import Bootstrap, Floats, Sampled
from training.evaluation.inputs import Labels
from training.score import Vectors

METRICS = ("top1_accuracy", "top3_accuracy", "macro_f1")


@dataclass(frozen=True)
class LabelScores:
    """What one system says: a score for each label, float32 [n, K], higher is better."""

    name: str
    title: str
    scores: Vectors


def measure_labels(scores: Vectors, label_ids: Labels, bootstrap: Bootstrap) -> dict[str, Sampled]:
    """Top-1 and top-3 accuracy and macro-F1. Equal scores go to the lower label id."""
    ranked = np.argsort(-scores, axis=1, kind="stable")
    hits = ranked == label_ids[:, None]
    return {
        "top1_accuracy": bootstrap.mean(hits[:, 0]),
        "top3_accuracy": bootstrap.mean(hits[:, :3].any(axis=1)),
        "macro_f1": macro_f1(ranked[:, 0], label_ids, bootstrap),
    }


def macro_f1(predicted: Labels, label_ids: Labels, bootstrap: Bootstrap) -> Sampled:
    """The mean F1, `2 TP / (predicted + true)`, of the labels that occur as truth or prediction (as scikit-learn)."""
    occurring = np.unique(np.concatenate([predicted, label_ids]))
    is_predicted, is_true = predicted[:, None] == occurring, label_ids[:, None] == occurring
    columns = np.concatenate([is_predicted & is_true, is_predicted, is_true], axis=1)
    value = _mean_f1(columns.sum(axis=0, dtype=np.float64)[None])[0]
    return Sampled(float(value), _mean_f1(bootstrap.sums(columns)))


def _mean_f1(sums: Floats) -> Floats:
    """Macro-F1 [R] of true positives, predictions and truths side by side, [R, 3 L]; absent labels are left out."""
    hits, predicted, true = np.split(sums, 3, axis=1)
    occurrences = predicted + true
    scores = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    means: Floats = scores.sum(axis=1) / (occurrences > 0).sum(axis=1)
    return means


def compare_labels(systems: Sequence[LabelScores], label_ids: Labels, bootstrap: Bootstrap) -> dict[str, Any]:
    """Each system's metrics, and the tuned system (the first) minus the best of the others on the same resamples."""
    measured = {system.name: measure_labels(system.scores, label_ids, bootstrap) for system in systems}
    tuned, *others = systems
    best = max(others, key=lambda system: measured[system.name]["top1_accuracy"].value, default=None)
    return {
        "instructions": len(label_ids),
        "labels": len(np.unique(label_ids)),
        "systems": {system.name: {"title": system.title, **_estimates(measured[system.name])} for system in systems},
        "difference": None
        if best is None
        else {
            "baseline": best.name,
            **{name: measured[tuned.name][name].minus(measured[best.name][name]).estimate() for name in METRICS},
        },
    }


def _estimates(measured: Mapping[str, Sampled]) -> dict[str, Any]:
    return {name: sampled.estimate() for name, sampled in measured.items()}


def label_details(predicted: Labels, label_ids: Labels, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label that occurs as truth or prediction."""
    occurring = np.unique(np.concatenate([predicted, label_ids]))
    columns: tuple[npt.NDArray[Any], ...] = precision_recall_fscore_support(
        label_ids, predicted, labels=occurring, zero_division=0
    )
    return [
        {"label": labels[label], "precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
        for label, p, r, f, support in zip(occurring, *columns, strict=True)
    ]
