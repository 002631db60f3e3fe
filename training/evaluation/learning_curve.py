"""What an encoder's vectors are worth with few examples a label."""

from typing import Any

import numpy as np
from tqdm import tqdm

from training.evaluation.baselines import MINIMUM_CLASSES, class_scores, logistic_regression
from training.evaluation.inputs import Inputs, Labels, SplitInputs
from training.score import Vectors


def draw_shots(label_ids: Labels, shots: int, seed: int) -> list[int]:
    """The places of up to `shots` examples of each label, drawn without replacement; all where it has fewer."""
    generator = np.random.default_rng(seed)
    places = generator.permutation(len(label_ids))
    taken: dict[int, int] = {}
    chosen = []
    for place in places:
        label = int(label_ids[place])
        if taken.get(label, 0) < shots:
            taken[label] = taken.get(label, 0) + 1
            chosen.append(int(place))
    return sorted(chosen)


def learning_curve(inputs: Inputs, judged: SplitInputs) -> dict[str, Any] | None:
    """Top-1 accuracy of logistic regression on the run's vectors and the base encoder's, by examples a label.

    Both are drawn the same examples. None where fewer than two labels have a training instruction.
    """
    train = inputs.splits["train"].labelled()
    if len(np.unique(train.label_ids)) < MINIMUM_CLASSES:
        return None
    most = int(np.bincount(train.label_ids).max())
    points: list[tuple[int | None, int]] = [
        (shots, draw) for shots in inputs.settings.shots if shots < most for draw in range(inputs.settings.draws)
    ]
    points.append((None, 0))  # all training instructions: there is nothing to draw
    encoders = {"base": (train.base_h, judged.base_h)}
    if not inputs.is_frozen:
        encoders["tuned"] = (train.h, judged.h)
    accuracies: dict[str, dict[int | None, list[float]]] = {name: {} for name in encoders}
    examples: dict[int | None, int] = {}
    for shots, draw in tqdm(points, desc="learning curve", unit="fit", disable=None, leave=False):
        seed = inputs.settings.seed + draw
        rows = list(range(len(train))) if shots is None else draw_shots(train.label_ids, shots, seed)
        examples[shots] = len(rows)
        for name, (taught, asked) in encoders.items():
            accuracy = _accuracy(taught[rows], train.label_ids[rows], asked, judged.label_ids)
            accuracies[name].setdefault(shots, []).append(accuracy)
    return {
        "split": judged.split,
        "instructions": len(judged),
        "labels_taught": len(np.unique(train.label_ids)),
        "frozen": inputs.is_frozen,
        "curves": {
            name: [
                {
                    "shots": shots,
                    "examples": examples[shots],
                    "draws": len(values),
                    "mean": float(np.mean(values)),
                    "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                }
                for shots, values in own.items()
            ]
            for name, own in accuracies.items()
        },
    }


def _accuracy(vectors: Vectors, label_ids: Labels, asked: Vectors, truth: Labels) -> float:
    regression = logistic_regression(vectors, label_ids)
    scores = class_scores(regression, asked, int(max(label_ids.max(), truth.max())) + 1)
    return float((scores.argmax(axis=1) == truth).mean())
