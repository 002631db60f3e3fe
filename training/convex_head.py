"""A linear head as the one minimum of a convex loss, found by L-BFGS; nothing here loads torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

LEAST_LOGIT = np.float32(-60)
"""Below the greatest; smaller ones make subnormal numbers, with which processors are a hundred times slower."""
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.05, 20.0


def least_cross_entropy(
    vectors: Vectors,
    targets: npt.NDArray[np.floating[Any]],
    weights: npt.NDArray[np.floating[Any]],
    *,
    centre: Floats,
    pull: Floats | float,
    start: Floats | None = None,
    iterations: int = 200,
) -> Floats:
    """The head that minimises `Σ wᵢ·CE(targetᵢ, softmax(W·[xᵢ, 1])) / Σ wᵢ + ½ Σ pull·(W − centre)²`.

    With a pull above 0 everywhere the loss is strictly convex: there is one such head, wherever it starts.

    Args:
        vectors: float32 [n, H], the x; a constant 1 is appended for the bias.
        targets: [n, K], each row a distribution over the labels.
        weights: [n], not negative, one of them above 0.
        centre: float64 [K, H + 1], where the head is pulled to; the last column is the bias.
        pull: how strongly, one number or [K, H + 1], in units of the mean loss.
        start: float64 [K, H + 1], where to begin; `centre` if None.
        iterations: of L-BFGS at most.

    Returns:
        float64 [K, H + 1].
    """
    rows = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1, dtype=np.float32)
    shares = np.asarray(weights / np.sum(weights), np.float32)[:, None]
    wanted = np.asarray(targets, np.float32)

    logits = np.empty(
        (len(rows), len(centre)), np.float32
    )  # one for all steps: to allocate it costs more than to fill it

    def loss(flat: Floats) -> tuple[float, Floats]:
        # The products in float32, at half the time; what is summed up, in float64.
        head = flat.reshape(centre.shape)
        np.matmul(rows, head.astype(np.float32).T, out=logits)
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=logits)
        of_targets = np.einsum("nk,nk->n", wanted, logits)
        np.maximum(logits, LEAST_LOGIT, out=logits)
        np.exp(logits, out=logits)
        sums = logits.sum(axis=1, keepdims=True)
        losses = np.log(sums[:, 0]) - of_targets
        np.divide(logits, sums, out=logits)
        np.subtract(logits, wanted, out=logits)
        np.multiply(logits, shares, out=logits)
        change = head - centre
        gradient = (logits.T @ rows).astype(np.float64) + pull * change
        value = float(shares[:, 0].astype(np.float64) @ losses) + 0.5 * float((pull * change**2).sum())
        return value, gradient.ravel()

    begin = centre if start is None else start
    found = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    return np.asarray(found.x.reshape(centre.shape), np.float64)


def one_hot(label_ids: npt.NDArray[np.int64], labels: int) -> Vectors:
    """Each label id as a distribution, float32 [n, labels]."""
    targets = np.zeros((len(label_ids), labels), np.float32)
    targets[np.arange(len(label_ids)), label_ids] = 1
    return targets


def best_temperature(logits: Floats, label_ids: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The T that minimises the mean cross-entropy of `softmax(logits / T)`, and that loss.

    Guo et al. 2017, arXiv 1706.04599. T lies from 0.05 to 20.

    Args:
        logits: float64 [n, K], n at least 1.
        label_ids: [n].
    """

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(label_ids)), label_ids]
        return float(losses.mean())

    bounds = (np.log(LEAST_TEMPERATURE), np.log(GREATEST_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x)), float(found.fun)
