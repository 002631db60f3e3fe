"""How far a graph's vectors are from torch's, and what that does to labels, rankings and the task. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.graph_file import EncoderSession
from export.head_graph import VECTOR
from export.report import LOSS_DIGITS, Check, VerificationBudget
from export.task import Task, TaskComparison
from export.tokens import Batch, pad
from training.metrics import best_rows

__all__ = [
    "cosine",
    "encode",
    "encode_rows",
    "like_lengths",
    "not_finite",
    "ranking_checks",
    "top_k_agreement",
    "vector_checks",
]

Floats = npt.NDArray[np.float32]
Side = tuple[Floats, Floats]
"""The vectors [n, H] of some texts and their logits [n, K]."""

_BATCH = 32
_ROUNDING = 1e-6  # of an inner product of two normalised vectors in FP32, times some ten
_NOT_FINITE = "values that are not finite"


def encode(session: EncoderSession, batch: Batch) -> Floats:
    """Runs an encoder graph over one batch and returns its vectors, [batch, H]."""
    ids, mask = batch
    vectors: Floats = session.run([VECTOR], {"input_ids": ids, "attention_mask": mask})[0]
    return vectors


def like_lengths(rows: Sequence[Sequence[int]]) -> list[npt.NDArray[np.int64]]:
    """The places of rows of token ids in batches of like length."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]


def encode_rows(session: EncoderSession, rows: Sequence[Sequence[int]], multiple: int = 1) -> Floats:
    """The graph's vectors of rows of token ids, [n, H]; rows of like length run together, padded to a `multiple`."""
    batches = like_lengths(rows)
    vectors = np.concatenate(
        [encode(session, pad([rows[place] for place in places], multiple=multiple)) for places in batches]
    )
    return vectors[np.argsort(np.concatenate(batches))]


def top_k_agreement(reference: Floats, candidate: Floats, item_vectors: Floats, k: int) -> float:
    """Mean share of the candidate's k best items that are among the reference's k best, or as good as the last of them.

    Catalogues hold items of equal text, whose scores differ by rounding alone: which of them come first says nothing.

    Args:
        reference: [n, H], normalised.
        candidate: [n, H], row for row the same texts.
        item_vectors: [N, H], normalised.
        k: How many items; all of them if there are fewer.
    """
    k = min(k, len(item_vectors))
    shared = 0
    for start in range(0, len(reference), 64):  # bounds the score matrix, whatever the catalogue
        scores = [vectors[start : start + 64] @ item_vectors.T for vectors in (reference, candidate)]
        for one, other in zip(*scores, strict=True):
            last = np.partition(one, len(one) - k)[len(one) - k]
            shared += int((one[best_rows(other, k)] >= last - _ROUNDING).sum())
    return shared / (k * len(reference))


def cosine(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Cosine of matching rows, in FP64: FP32 could not tell 0.9999999 from 1. Two rows of zeros are the same: 1."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: npt.NDArray[np.float64] = (first * second).sum(axis=1) / np.maximum(lengths, 1e-30)
    return np.where(first.any(axis=1) | second.any(axis=1), found, 1.0)


def not_finite(*values: Floats) -> Check:
    """That there is neither NaN nor infinity; where there is, nothing else can be measured."""
    return Check.at_most(_NOT_FINITE, sum(int((~np.isfinite(one)).sum()) for one in values), 0)


def vector_checks(reference: Floats, candidate: Floats, budget: VerificationBudget) -> tuple[Check, Check, Check]:
    """Mean and minimum cosine, and the greatest difference of a component, over the same texts [n, H]."""
    found = cosine(reference, candidate)
    return (
        Check.at_least("mean cosine", float(found.mean()), budget.mean_cosine),
        Check.at_least("minimum cosine", float(found.min()), budget.min_cosine),
        Check.at_most("greatest difference", float(np.abs(reference - candidate).max()), budget.max_absolute),
    )


def ranking_checks(
    reference: Side, candidate: Side, budget: VerificationBudget, item_vectors: Floats | None, task: Task | None
) -> tuple[list[Check], list[TaskComparison]]:
    """What head, catalogue and task make of the difference, and the task's metrics.

    Args:
        reference: Of torch.
        candidate: Of the graph, row for row the same texts.
        budget: How far it may be.
        item_vectors: [N, H], normalised; without them the overlap of the best items is not compared.
        task: Of these very texts; without it the task's metrics are not compared.
    """
    agreement = float((reference[1].argmax(axis=1) == candidate[1].argmax(axis=1)).mean())
    checks = [Check.at_least("same best label", agreement, budget.label_agreement)]
    if item_vectors is not None:
        overlap = top_k_agreement(reference[0], candidate[0], item_vectors, budget.top_k)
        checks.append(Check.at_least(f"overlap of the best {budget.top_k} items", overlap, budget.top_k_overlap))
    measured = [] if task is None else task.compare(reference, candidate)
    for one in measured:
        loss = round(0.0 - one.difference, LOSS_DIGITS)
        checks.append(Check.at_most(f"loss of {one.name}", loss, budget.task_bar(one)))
    return checks, measured
