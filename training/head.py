"""Tunes the instruction head: a linear layer over frozen text vectors, with cross-entropy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.config import TrainingConfig
from training.dataset import Item
from training.score import CatalogueSide, Vectors

# Called after each epoch with the weight decay, the epoch from 1, the training loss and the validation loss.
Observe = Callable[[float, int, float, float], object]
START_SCALE = 15.0  # logits of a nearest-centroid rule over vectors of length 1


@dataclass(frozen=True)
class HeadExamples:
    """Vectors [n, H], label ids [n] and example weights [n]."""

    vectors: Vectors
    label_ids: npt.NDArray[np.int64]
    weights: Vectors


@dataclass(frozen=True)
class TunedHead:
    """`weight` [K, H] and `bias` [K], and how they were found."""

    weight: Vectors
    bias: Vectors
    epochs: int
    weight_decay: float
    validation_loss: float


def sample_items(items: Sequence[Item], per_label: int, seed: int) -> list[int]:
    """The rows of up to `per_label` items of each label, drawn without replacement; all where a label has fewer."""
    generator = np.random.default_rng(seed)
    rows_of_label: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows_of_label.setdefault(item.label, []).append(row)
    drawn = [generator.permutation(rows_of_label[label])[:per_label] for label in sorted(rows_of_label)]
    return [int(row) for rows in drawn for row in rows]


def balanced(examples: HeadExamples) -> HeadExamples:
    """The same examples, weighted so that every label that has any weighs the same; the total weight stays."""
    totals = np.bincount(examples.label_ids, weights=examples.weights)
    share = examples.weights.sum() / np.count_nonzero(totals)
    weights = (examples.weights * share / totals[examples.label_ids]).astype(np.float32)
    return HeadExamples(examples.vectors, examples.label_ids, weights)


def label_centroids(catalogue: CatalogueSide, labels: int) -> Vectors:
    """The normalised mean of each label's item vectors, float32 [K, H]: what a label means before any instruction."""
    sums = np.zeros((labels, catalogue.vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, catalogue.label_ids, catalogue.vectors)
    centroids: Vectors = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centroids


@dataclass(frozen=True)
class StartHead:
    """A head to start from: `weight` [K, H] and `bias` [K]."""

    weight: Vectors
    bias: Vectors


def tune_head(
    train: HeadExamples,
    validation: HeadExamples,
    centroids: Vectors,
    config: TrainingConfig,
    start: StartHead | None = None,
    observe: Observe | None = None,
) -> TunedHead:
    """Minimise the weighted cross-entropy over `train`; keep what is best on `validation`.

    The head is `scale * centroids + change`: it starts as the nearest-centroid rule, and weight decay pulls it back
    there, not to zero, so that a label keeps the meaning of its items where instructions are few. Each of the config's
    weight decays is tried. So is `start`, if there is one, as it is and tuned on, pulled back to itself: the head that
    learned together with the encoder knows what all its epochs showed it. The whole training set is one batch and
    nothing is drawn: equal inputs give equal heads.
    """
    if config.class_balance:
        train = balanced(train)
    starts = [StartHead(START_SCALE * centroids, np.zeros(len(centroids), np.float32)), *([start] if start else [])]
    tries = [(one, decay) for one in starts for decay in config.weight_decays]
    with tqdm(total=config.epochs * len(tries), desc="head", unit="epoch", disable=None) as bar:
        heads = [_tune(train, validation, one, config, decay, bar, observe) for one, decay in tries]
    return min(heads, key=lambda head: head.validation_loss)


def _tune(
    train: HeadExamples,
    validation: HeadExamples,
    start: StartHead,
    config: TrainingConfig,
    weight_decay: float,
    bar: "tqdm[NoReturn]",
    observe: Observe | None,
) -> TunedHead:
    directions = torch.from_numpy(start.weight / START_SCALE)
    scale = torch.tensor(START_SCALE, requires_grad=True)
    change = torch.zeros_like(directions, requires_grad=True)
    bias = torch.from_numpy(start.bias.copy()).requires_grad_()
    optimizer = torch.optim.AdamW(
        [
            {"params": [change, bias], "weight_decay": weight_decay},
            # The scale is some hundred times as large as an entry of the change, and is not pulled anywhere.
            {"params": [scale], "weight_decay": 0.0, "lr": 10 * config.learning_rate},
        ],
        lr=config.learning_rate,
    )
    with torch.no_grad():
        loss = float(_loss(scale * directions, bias, validation))
    best = TunedHead(start.weight, start.bias, 0, weight_decay, loss)
    for epoch in range(1, config.epochs + 1):
        optimizer.zero_grad()
        training_loss = _loss(scale * directions + change, bias, train)
        training_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        bar.update()
        with torch.no_grad():
            weight = scale * directions + change
            loss = float(_loss(weight, bias, validation))
        if observe is not None:
            observe(weight_decay, epoch, float(training_loss.detach()), loss)
        if loss < best.validation_loss:
            best = TunedHead(weight.numpy(), bias.detach().numpy().copy(), epoch, weight_decay, loss)
        if epoch - best.epochs >= config.patience:
            break
    return best


def _loss(weight: Tensor, bias: Tensor, examples: HeadExamples) -> Tensor:
    logits = nn.functional.linear(torch.from_numpy(examples.vectors), weight, bias)
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(examples.label_ids), reduction="none")
    weights = torch.from_numpy(examples.weights)
    return (losses * weights).sum() / weights.sum()
