"""Holds an exported graph against the torch model it came from, over real texts and at many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.divergence import first_divergence
from export.errors import ExportError, VerificationError
from export.graph_file import load_graph, open_session
from export.onnx_graph import VECTOR
from export.report import Check, VerificationBudget, VerificationReport
from export.task import Task, TaskComparison
from export.tokens import Batch, pad, tokenize
from training.model import InstructionModel

__all__ = ["VerificationReport", "encode", "top_k_agreement", "verify_encoder"]

Floats = npt.NDArray[np.float32]

_BATCH = 8  # the largest batch of the shapes
_INVARIANCE_TEXTS = 16
_NEIGHBOURS = 32


def verify_encoder(
    graph: Path,
    model: InstructionModel,
    texts: Sequence[str],
    buckets: Sequence[int],
    budget: VerificationBudget,
    *,
    item_vectors: Floats | None = None,
    task: Task | None = None,
) -> VerificationReport:
    """Compares a graph with torch and returns every check, all of them passed.

    Args:
        graph: The ONNX file.
        model: The torch model, in FP32.
        texts: Real instructions; a few hundred give a stable overlap.
        buckets: The lengths, in tokens, that the server pads to.
        budget: How far the graph may be from torch.
        item_vectors: [N, H], normalised; without them the overlap of the best items is not compared.
        task: Of the very instructions in `texts`; without it the task's metrics are not compared.

    Raises:
        VerificationError: A check failed. It carries the report.
        ExportError: There are no texts or no buckets, or the graph cannot be read or run.
    """
    if not texts or not buckets:
        raise ExportError("Verification needs at least one text and one length bucket.")
    session = open_session(graph)
    rows = tokenize(model, texts)
    batches = _shaped_batches(rows, buckets)
    found = _compare(session, model, rows, batches, budget, item_vectors, task)
    place = None if found.numbers_agree else first_divergence(load_graph(graph), model, _probe(rows, buckets), budget)
    report = VerificationReport(
        graph=graph.name,
        texts=len(rows),
        shapes=tuple((ids.shape[0], ids.shape[1]) for ids, _ in batches),
        checks=tuple(found.checks),
        task=tuple(found.task),
        first_divergence=place,
    )
    if not report.passed:
        raise VerificationError(report)
    return report


def top_k_agreement(reference: Floats, candidate: Floats, item_vectors: Floats, k: int) -> float:
    """Mean share of the k best items that two sets of vectors have in common.

    Args:
        reference: [n, H].
        candidate: [n, H], row for row the same texts.
        item_vectors: [N, H].
        k: How many items; all of them if there are fewer.
    """
    k = min(k, len(item_vectors))
    shared = 0
    for start in range(0, len(reference), 256):  # bounds the score matrix, whatever the catalogue
        best = [
            np.argsort(-(vectors[start : start + 256] @ item_vectors.T), axis=1, kind="stable")[:, :k]
            for vectors in (reference, candidate)
        ]
        shared += sum(len(np.intersect1d(one, other)) for one, other in zip(*best, strict=True))
    return shared / (k * len(reference))


def encode(session: onnxruntime.InferenceSession, batch: Batch) -> Floats:
    """Runs an encoder graph over one batch and returns its vectors, [batch, H]."""
    ids, mask = batch
    vectors: Floats = session.run([VECTOR], {"input_ids": ids, "attention_mask": mask})[0]
    return vectors


@dataclass
class _Comparison:
    """Every check, the task's metrics, and whether the graph's numbers are torch's within the budget."""

    checks: list[Check]
    task: list[TaskComparison]
    numbers_agree: bool


def _compare(
    session: onnxruntime.InferenceSession,
    model: InstructionModel,
    rows: list[list[int]],
    batches: list[Batch],
    budget: VerificationBudget,
    item_vectors: Floats | None,
    task: Task | None,
) -> _Comparison:
    reference, candidate = _over_texts(session, model, rows)
    shaped = [(_torch(model, batch), encode(session, batch)) for batch in batches]
    invalid = sum(int((~np.isfinite(values)).sum()) for values in (candidate, *(found for _, found in shaped)))
    finite = Check.at_most("values that are not finite", invalid, 0)
    if not finite.passed:
        return _Comparison([finite], [], numbers_agree=False)  # nothing else can be measured on NaN
    cosine = _cosine(reference, candidate)
    numbers = [
        finite,
        Check.at_least("mean cosine", float(cosine.mean()), budget.mean_cosine),
        Check.at_least("minimum cosine", float(cosine.min()), budget.min_cosine),
        Check.at_least(
            "minimum cosine over shapes", min(float(_cosine(*pair).min()) for pair in shaped), budget.shape_cosine
        ),
        Check.at_most("greatest difference", float(np.abs(reference - candidate).max()), budget.max_absolute),
    ]
    neighbours, padding = _variance(session, rows, sorted({ids.shape[1] for ids, _ in batches}))
    logits = [_logits(model, vectors) for vectors in (reference, candidate)]
    agreement = float((logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).mean())
    rest = [
        Check.at_most("difference that batch neighbours make", neighbours, budget.invariance),
        Check.at_most("difference that padding makes", padding, budget.invariance),
        Check.at_least("same best label", agreement, budget.label_agreement),
    ]
    if item_vectors is not None:
        overlap = top_k_agreement(reference, candidate, item_vectors, budget.top_k)
        rest.append(Check.at_least(f"overlap of the best {budget.top_k} items", overlap, budget.top_k_overlap))
    measured = [] if task is None else task.compare((reference, logits[0]), (candidate, logits[1]))
    rest += [Check.at_most(f"loss of {one.name}", 0.0 - one.difference, budget.task_loss) for one in measured]
    numbers_agree = all(check.passed for check in [*numbers, *rest[:2]])
    return _Comparison([*numbers, *rest], measured, numbers_agree)


def _over_texts(
    session: onnxruntime.InferenceSession, model: InstructionModel, rows: list[list[int]]
) -> tuple[Floats, Floats]:
    """Vectors of torch and of the graph for every text, texts of like length together."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    pairs = []
    for start in range(0, len(order), 32):
        batch = pad([rows[index] for index in order[start : start + 32]])
        pairs.append((_torch(model, batch), encode(session, batch)))
    reference, candidate = (np.concatenate(vectors)[np.argsort(order)] for vectors in zip(*pairs, strict=True))
    return reference, candidate


def _shaped_batches(rows: list[list[int]], buckets: Sequence[int]) -> list[Batch]:
    """Real tokens at (1, 1), and at every bucket: one row that fills it, and a batch of rows that do and do not."""
    joined = [token for row in rows for token in row]
    while len(joined) < _BATCH * max(buckets):
        joined = joined * 2
    batches = [pad([rows[0]], 1)]
    for length in sorted(set(buckets)):
        full = [joined[start * length : (start + 1) * length] for start in range(_BATCH)]
        mixed = [full[index] if index % 2 else rows[index % len(rows)] for index in range(_BATCH)]
        batches += [pad(full[:1], length), pad(mixed, length)]
    return batches


def _variance(session: onnxruntime.InferenceSession, rows: list[list[int]], lengths: list[int]) -> tuple[float, float]:
    """The greatest change to a text's vector that other texts in its batch make, and that padding to a bucket makes."""
    neighbours = padding = 0.0
    for index, row in enumerate(rows[:_INVARIANCE_TEXTS]):
        alone = encode(session, pad([row]))
        others = [rows[(index + step) % len(rows)][: len(row)] for step in range(1, _NEIGHBOURS)]
        among = encode(session, pad([row, *others], len(row)))[:1]
        neighbours = max(neighbours, float(np.abs(among - alone).max()))
        for length in (length for length in lengths if length > len(row)):
            padding = max(padding, float(np.abs(encode(session, pad([row], length)) - alone).max()))
    return neighbours, padding


def _probe(rows: list[list[int]], buckets: Sequence[int]) -> Batch:
    """A small batch with padding, so that a mask that is ignored shows."""
    chosen = rows[:_BATCH]
    return pad(chosen, min(max(buckets), max(map(len, chosen)) + 4))


@torch.inference_mode()
def _torch(model: InstructionModel, batch: Batch) -> Floats:
    ids, mask = batch
    vectors: Floats = model(torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()
    return vectors


@torch.inference_mode()
def _logits(model: InstructionModel, vectors: Floats) -> Floats:
    logits: Floats = model.head(torch.from_numpy(vectors)).numpy()
    return logits


def _cosine(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Cosine of matching rows, in FP64: FP32 could not tell 0.9999999 from 1."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine: npt.NDArray[np.float64] = (first * second).sum(axis=1) / np.maximum(lengths, 1e-30)
    return cosine
