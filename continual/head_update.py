"""Re-tunes a linear head on new examples and a replay of old ones, held near the head that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.convex_head import least_cross_entropy, one_hot

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadWeights:
    """A linear head: `weight` [K, H] and `bias` [K]."""

    weight: Vectors
    bias: Vectors

    def logits(self, vectors: Vectors) -> Floats:
        """The logits of some vectors [n, H], float64 [n, K]."""
        return np.asarray(vectors, np.float64) @ np.asarray(self.weight, np.float64).T + self.bias

    def best_labels(self, vectors: Vectors) -> npt.NDArray[np.int64]:
        """The label id of each vector's greatest logit, [n]."""
        return np.asarray(self.logits(vectors).argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Examples:
    """Vectors [n, H], label ids [n] and weights [n], which are not negative."""

    vectors: Vectors
    label_ids: npt.NDArray[np.int64]
    weights: Floats

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.label_ids)

    @classmethod
    def none(cls, width: int) -> Examples:
        """No examples, of vectors of this width."""
        return cls(np.empty((0, width), np.float32), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class Anchor:
    """How a new head is held where the old one is.

    Attributes:
        penalty: of the squared distance to the old head's weights, in units of the mean loss. It makes the problem
            strictly convex, so that there is one answer.
        fisher: how much more that distance counts along what old data depends on: the penalty of a weight is
            multiplied by `1 + fisher * F / mean(F)`, with F the diagonal of the Fisher information on the replay
            (elastic weight consolidation, arXiv 1612.00796).
        distillation: the share of the replay's targets that are the old head's own probabilities instead of the
            labels (learning without forgetting, arXiv 1606.09282).
    """

    penalty: float
    fisher: float = 0.0
    distillation: float = 0.0


def update_head(
    old: HeadWeights,
    new: Examples,
    replay: Examples,
    anchor: Anchor,
    *,
    replay_ratio: float = 1.0,
    iterations: int = 200,
    start: HeadWeights | None = None,
) -> HeadWeights:
    """The head with the least loss near the old one; the same for the same inputs.

    The loss is the weighted mean cross-entropy over the new examples and the replay, plus the anchor's penalty. L-BFGS
    finds its one minimum. Where much is new, the replay's weights are multiplied so that it keeps the upper hand; few
    new examples stay few: one counts what an old one of its weight does.

    Args:
        old: the head to start from.
        new: what is to be learned.
        replay: what is not to be forgotten.
        anchor: what holds the head.
        replay_ratio: the least weight of all of the replay over that of all that is new.
        iterations: of L-BFGS at most.
        start: where it begins, a head for another penalty say; the old one if None.
    """
    total = float(new.weights.sum())
    if total <= 0:
        return old
    labels, width = old.weight.shape
    replay_weights = replay.weights * max(1.0, replay_ratio * total / max(float(replay.weights.sum()), 1e-12))
    vectors = np.concatenate([new.vectors, replay.vectors])
    weights = np.concatenate([new.weights, replay_weights])
    centre, begin = _joined(old), _joined(start or old)
    targets = one_hot(np.concatenate([new.label_ids, replay.label_ids]), labels)
    importance = np.ones_like(centre)
    if len(replay):
        old_vectors = _with_constant(replay.vectors)
        probabilities = _softmax(old_vectors.astype(np.float64) @ centre.T)
        targets[len(new) :] *= 1 - anchor.distillation
        targets[len(new) :] += anchor.distillation * probabilities
        if anchor.fisher:
            share = replay.weights / replay.weights.sum()
            information = (share[:, None] * probabilities * (1 - probabilities)).T @ old_vectors**2
            importance += anchor.fisher * information / max(float(information.mean()), 1e-300)
    pull = anchor.penalty * importance

    found = least_cross_entropy(vectors, targets, weights, centre=centre, pull=pull, start=begin, iterations=iterations)
    head = found.astype(np.float32)
    return HeadWeights(np.ascontiguousarray(head[:, :width]), np.ascontiguousarray(head[:, width]))


@dataclass(frozen=True)
class Chosen:
    """A new head, and what held it."""

    head: HeadWeights
    anchor: Anchor


def choose_head(
    old: HeadWeights,
    new: Examples,
    replay: Examples,
    validations: Sequence[Examples],
    anchors: Sequence[Anchor],
    replay_ratio: float,
) -> Chosen:
    """The best of the heads with each of these anchors.

    How stiff an anchor has to be depends on how long the old head's rows are; whether the replay's labels or the old
    head's own answers to it are the better teacher, on how well that head knows them. So both are measured: the least
    sum of the mean losses over `validations`, old and new, which are not learned from.
    """
    tried: list[tuple[float, Chosen]] = []
    start = old
    for anchor in sorted(anchors, key=lambda one: (one.distillation, -one.penalty)):
        # Each starts where a stiffer one ended, and is there sooner.
        start = update_head(old, new, replay, anchor, replay_ratio=replay_ratio, start=start)
        loss = sum(mean_loss(start, validation) for validation in validations if len(validation))
        tried.append((loss, Chosen(start, anchor)))
    return min(tried, key=lambda one: one[0])[1]


def mean_loss(head: HeadWeights, examples: Examples) -> float:
    """The weighted mean cross-entropy of some examples."""
    logits = head.logits(examples.vectors)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), examples.label_ids]
    return float(examples.weights @ losses / examples.weights.sum())


def distance(one: HeadWeights, other: HeadWeights) -> float:
    """How far one head is from another, as a share of the other's length."""
    moved = float(np.sum((one.weight - other.weight) ** 2) + np.sum((one.bias - other.bias) ** 2))
    length = float(np.sum(other.weight**2) + np.sum(other.bias**2))
    return float(np.sqrt(moved / max(length, 1e-12)))


def _joined(head: HeadWeights) -> Floats:
    both: Floats = np.concatenate([head.weight, head.bias[:, None]], axis=1).astype(np.float64)
    return both


def _with_constant(vectors: Vectors) -> Vectors:
    return np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1, dtype=np.float32)


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
