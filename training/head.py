"""Tunes the instruction head: a linear layer over frozen text vectors, with cross-entropy."""

import functools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.config import TrainingConfig
from training.convex_head import best_temperature, least_cross_entropy, one_hot
from training.dataset import Item, says_one_of
from training.score import CatalogueSide, Vectors

START_SCALE = 15.0  # logits of a nearest-centroid rule over vectors of length 1


@dataclass(frozen=True)
class HeadExamples:
    """Vectors [n, H], label ids [n] and example weights [n]."""

    vectors: Vectors
    label_ids: npt.NDArray[np.int64]
    weights: Vectors


@dataclass(frozen=True)
class HeadEpoch:
    """One epoch, counted from 1, of one of the heads that are tried.

    `start` says where that head began (0: at the labels' centroids, 1: at the head that learned with the encoder);
    `weight_decay` and `untaught_weight` are the settings that are tried with it.
    """

    start: int
    weight_decay: float
    untaught_weight: float
    epoch: int
    training_loss: float
    validation_loss: float

    @property
    def head(self) -> str:
        """The head's name among those that are tried; what is as it is by default is left out."""
        untaught = "" if self.untaught_weight == 1 else f"_untaught_weight_{self.untaught_weight}"
        return f"weight_decay_{self.weight_decay}{untaught}{'_from_encoder_tuning' if self.start else ''}"


Observe = Callable[[HeadEpoch], object]  # called after each epoch


@dataclass(frozen=True)
class TunedHead:
    """`weight` [K, H] and `bias` [K], and how they were found: by `epochs` of a descent, or with a `ridge_penalty`."""

    weight: Vectors
    bias: Vectors
    epochs: int
    weight_decay: float
    validation_loss: float
    ridge_penalty: float | None = None

    @property
    def found_by(self) -> str:
        """How it was found, in words."""
        if self.ridge_penalty is not None:
            return f"with ridge penalty {self.ridge_penalty:g}"
        return f"after {self.epochs} epochs with weight decay {self.weight_decay}"


def equally_weighted(vectors: Vectors, label_ids: npt.NDArray[np.int64], weight: float = 1.0) -> HeadExamples:
    """Examples that weigh the same."""
    return HeadExamples(vectors, label_ids, np.full(len(label_ids), weight, np.float32))


def joined(first: HeadExamples, second: HeadExamples) -> HeadExamples:
    """All examples of both, in this order."""
    return HeadExamples(
        np.concatenate([first.vectors, second.vectors]),
        np.concatenate([first.label_ids, second.label_ids]),
        np.concatenate([first.weights, second.weights]),
    )


def sample_items(items: Sequence[Item], per_label: int, seed: int, held_out: Set[str] = frozenset()) -> list[int]:
    """The rows of up to `per_label` items of each label, drawn without replacement; all where a label has fewer.

    An item that says one of `held_out` (`training.dataset.says_one_of`) is not drawn.
    """
    generator = np.random.default_rng(seed)
    rows_of_label: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows_of_label.setdefault(item.label, []).append(row)
    drawn: list[int] = []
    for label in sorted(rows_of_label):
        rows = [int(row) for row in generator.permutation(rows_of_label[label])]
        drawn += [row for row in rows if not says_one_of(items[row], held_out)][:per_label]
    return drawn


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
    untaught_weight: float = 1.0,
) -> TunedHead:
    """Minimise the weighted cross-entropy over `train`; keep what is best on `validation`.

    The head is `scale * centroids + change`: it starts as the nearest-centroid rule, and weight decay pulls it back
    there, not to zero, so that a label keeps the meaning of its items where instructions are few. Each of the config's
    weight decays is tried. So is `start`, if there is one, as it is and tuned on, pulled back to itself: the head that
    learned together with the encoder knows what all its epochs showed it. The whole training set is one batch and
    nothing is drawn: equal inputs give equal heads. `untaught_weight` is what `observe` is told of `train`.
    """
    if config.class_balance:
        train = balanced(train)
    starts = [StartHead(START_SCALE * centroids, np.zeros(len(centroids), np.float32)), *([start] if start else [])]
    tries = [(number, one, decay) for number, one in enumerate(starts) for decay in config.weight_decays]
    with tqdm(total=config.epochs * len(tries), desc="head", unit="epoch", disable=None) as bar:

        def report(number: int, decay: float, epoch: int, training_loss: float, validation_loss: float) -> None:
            bar.update()
            if observe is not None:
                observe(HeadEpoch(number, decay, untaught_weight, epoch, training_loss, validation_loss))

        heads = [
            _tune(train, validation, one, config, decay, functools.partial(report, number, decay))
            for number, one, decay in tries
        ]
    return min(heads, key=lambda head: head.validation_loss)


def tune_weighted_head(
    people: HeadExamples,
    untaught: HeadExamples,
    validation: HeadExamples,
    centroids: Vectors,
    config: TrainingConfig,
    start: StartHead | None = None,
    observe: Observe | None = None,
) -> TunedHead:
    """The best of the heads of `tune_head` and `tune_ridge_heads` with each of the config's `untaught_weights`.

    `people` are instructions with labels of people's own, `untaught` are the items and instructions whose weight is
    multiplied. Without one of `people` or without `validation` that weight stays: only people's own instructions tell
    how much the others should count. What is learned from is then validated on too, where there is no `validation`.
    """
    held, heads = len(validation.label_ids) > 0, []
    for factor in config.untaught_weights if held and len(people.label_ids) else (1.0,):
        weighted = (untaught.weights.astype(np.float64) * factor).astype(np.float32)
        train = joined(people, replace(untaught, weights=weighted))
        heads.append(tune_head(train, validation if held else train, centroids, config, start, observe, factor))
        if held and len(people.label_ids):  # their temperature is of people's words that they have not learned
            heads.extend(tune_ridge_heads(train, validation, len(centroids), config))
    return min(heads, key=lambda head: head.validation_loss)


def tune_ridge_heads(
    train: HeadExamples, validation: HeadExamples, labels: int, config: TrainingConfig
) -> list[TunedHead]:
    """A multinomial logistic regression for each of the config's `ridge_penalties`.

    It is pulled to zero, not to the labels' centroids, and solved to its optimum, not stopped early: where there are
    labelled instructions enough, it tells labels apart that look alike to the centroids. The pull makes its
    probabilities too even; so each head is divided by the temperature that suits `validation` best before they are
    compared.

    Args:
        train: what is learned from.
        validation: at least one example.
        labels: K.
        config: with `class_balance` labels weigh the same.
    """
    if config.class_balance:
        train = balanced(train)
    targets = one_hot(train.label_ids, labels)
    centre = np.zeros((labels, train.vectors.shape[1] + 1))
    heads, found = [], centre
    for penalty in sorted(config.ridge_penalties, reverse=True):  # each starts where a stiffer one ended
        found = least_cross_entropy(
            train.vectors, targets, train.weights, centre=centre, pull=penalty, start=found, iterations=config.epochs
        )
        logits = validation.vectors.astype(np.float64) @ found[:, :-1].T + found[:, -1]
        temperature, loss = best_temperature(logits, validation.label_ids)
        head = (found / temperature).astype(np.float32)
        weight, bias = np.ascontiguousarray(head[:, :-1]), np.ascontiguousarray(head[:, -1])
        heads.append(TunedHead(weight, bias, 0, 0.0, loss, penalty))
    return heads


def _tune(
    train: HeadExamples,
    validation: HeadExamples,
    start: StartHead,
    config: TrainingConfig,
    weight_decay: float,
    report: Callable[[int, float, float], object],
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
        with torch.no_grad():
            weight = scale * directions + change
            loss = float(_loss(weight, bias, validation))
        report(epoch, float(training_loss.detach()), loss)
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
