"""Tunes the instruction head: a linear layer over frozen text vectors, with cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.config import TrainingConfig
from training.dataset import Item
from training.score import Vectors


@dataclass(frozen=True)
class HeadExamples:
    """Vectors [n, H], label ids [n] and example weights [n]."""

    vectors: Vectors
    label_ids: npt.NDArray[np.int64]
    weights: Vectors


@dataclass(frozen=True)
class TunedHead:
    """`weight` [K, H] and `bias` [K], with the epochs that ran and the best epoch's validation loss."""

    weight: Vectors
    bias: Vectors
    epochs: int
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


def tune_head(train: HeadExamples, validation: HeadExamples, labels: int, config: TrainingConfig) -> TunedHead:
    """Minimise the weighted cross-entropy over `train`; keep the epoch that is best on `validation`.

    The whole training set is one batch, so the result depends on nothing but the inputs. The problem is convex: the
    head starts at zero and needs no seed.
    """
    if config.class_balance:
        train = balanced(train)
    head = nn.Linear(train.vectors.shape[1], labels)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_loss, best_epoch, epoch = _copy(head), float("inf"), 0, 0
    with tqdm(range(1, config.epochs + 1), desc="head", unit="epoch") as epochs:
        for epoch in epochs:
            optimizer.zero_grad()
            _loss(head, train).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                loss = float(_loss(head, validation))
            if loss < best_loss:
                best, best_loss, best_epoch = _copy(head), loss, epoch
            epochs.set_postfix(validation_loss=f"{best_loss:.4f}", refresh=False)
            if epoch - best_epoch >= config.patience:
                break
    return TunedHead(weight=best[0], bias=best[1], epochs=epoch, validation_loss=best_loss)


def _loss(head: nn.Linear, examples: HeadExamples) -> Tensor:
    logits = head(torch.from_numpy(examples.vectors))
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(examples.label_ids), reduction="none")
    weights = torch.from_numpy(examples.weights)
    return (losses * weights).sum() / weights.sum()


def _copy(head: nn.Linear) -> tuple[Vectors, Vectors]:
    return head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()
