"""Whether the head's probabilities can be believed."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from training.evaluation.bootstrap import Bootstrap, Floats, Sampled
from training.evaluation.inputs import Labels
from training.score import Vectors, log_softmax

BINS = 15
TEMPERATURES = (0.05, 20.0)


def probabilities(logits: Vectors, temperature: float = 1.0) -> Floats:
    """`softmax(logits / temperature)`, float64 [n, K]."""
    exact = logits.astype(np.float64) / temperature
    shifted = np.exp(exact - exact.max(axis=1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def bin_of(confidences: Floats) -> npt.NDArray[np.int64]:
    """The bin of each confidence: bin m holds ((m - 1) / 15, m / 15], counted from 0 here."""
    places: npt.NDArray[np.int64] = np.ceil(confidences * BINS).astype(np.int64) - 1
    return np.minimum(np.maximum(places, 0), BINS - 1)


def expected_calibration_error(confidences: Floats, correct: npt.NDArray[np.bool_], bootstrap: Bootstrap) -> Sampled:
    """`sum_m (n_m / n) |accuracy_m - confidence_m|` over 15 equal-width bins (Guo et al. 2017)."""
    gaps = (np.eye(BINS)[bin_of(confidences)]) * (correct - confidences)[:, None]
    value = np.abs(gaps.sum(axis=0)).sum() / len(gaps)
    return Sampled(float(value), np.abs(bootstrap.sums(gaps)).sum(axis=1) / len(gaps))


def brier_scores(shares: Floats, label_ids: Labels) -> Floats:
    """The squared distance of each row of probabilities [n, K] to the truth, 0 to 2 (Brier 1950, over all labels)."""
    truth = np.zeros_like(shares)
    truth[np.arange(len(shares)), label_ids] = 1.0
    scores: Floats = np.square(shares - truth).sum(axis=1)
    return scores


def best_temperature(logits: Vectors, label_ids: Labels) -> float:
    """The temperature, 0.05 to 20, that minimises the cross-entropy of `softmax(logits / T)` (Guo et al. 2017)."""
    exact = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        logs = log_softmax(exact / np.exp(log_temperature))
        return -float(logs[np.arange(len(logs)), label_ids].mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def measure_calibration(
    logits: Vectors, label_ids: Labels, bootstrap: Bootstrap, temperature: float = 1.0
) -> dict[str, Any]:
    """Calibration error, Brier score, cross-entropy, mean confidence, and the bins of the reliability plot."""
    shares = probabilities(logits, temperature)
    confidences = shares.max(axis=1)
    correct = shares.argmax(axis=1) == label_ids
    bins = bin_of(confidences)
    own = shares[np.arange(len(shares)), label_ids]
    return {
        "instructions": len(label_ids),
        "temperature": temperature,
        "expected_calibration_error": expected_calibration_error(confidences, correct, bootstrap).estimate(),
        "brier_score": bootstrap.mean(brier_scores(shares, label_ids)).estimate(),
        "cross_entropy": bootstrap.mean(-np.log(np.maximum(own, np.finfo(np.float64).tiny))).estimate(),
        "mean_confidence": bootstrap.mean(confidences).estimate(),
        "accuracy": bootstrap.mean(correct).estimate(),
        "bins": [
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "instructions": int(inside.sum()),
                "confidence": float(confidences[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
            for number in range(BINS)
            if (inside := bins == number).any()
        ],
    }
