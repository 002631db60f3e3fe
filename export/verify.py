"""Holds an exported graph against the torch model it came from, over real texts and at many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from export.agreement import (
    cosine,
    encode,
    encode_rows,
    like_lengths,
    not_finite,
    ranking_checks,
    vector_checks,
)
from export.divergence import first_divergence
from export.errors import ExportError, VerificationError
from export.graph_file import EncoderSession, load_graph, open_served
from export.head_graph import through_head_graph
from export.report import Check, VerificationBudget, VerificationReport
from export.settings import LENGTH_MULTIPLES, Engine
from export.task import Task, TaskComparison
from export.tokens import Batch, pad, tokenize
from training.model import InstructionModel

__all__ = ["Comparison", "compare", "shaped_batches", "verify_encoder"]

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
    engine: Engine = "onnxruntime",
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
        engine: What runs the graph, at the lengths that it is served at; the report of another one than ONNX Runtime
            names it.

    Raises:
        VerificationError: A check failed. It carries the report.
        ExportError: There are no texts, no tokens or no buckets, or the graph cannot be read or run by the engine.
    """
    if not texts or not buckets:
        raise ExportError("Verification needs at least one text and one length bucket.")
    session, multiple = open_served(graph, engine), LENGTH_MULTIPLES[engine]
    rows = tokenize(model, texts)
    batches = [pad([rows[0]], 1), *shaped_batches(rows, buckets, (1, _BATCH))]
    found = compare(session, multiple, model, rows, batches, budget, item_vectors, task)
    place = None
    if not found.numbers_agree:
        place = first_divergence(load_graph(graph), model, _probe(rows, buckets), budget, engine)
    report = VerificationReport(
        graph=graph.name if engine == "onnxruntime" else f"{graph.name} in {engine}",
        texts=len(rows),
        shapes=tuple((ids.shape[0], ids.shape[1]) for ids, _ in batches),
        checks=tuple(found.checks),
        task=tuple(found.task),
        first_divergence=place,
    )
    if not report.passed:
        raise VerificationError(report)
    return report


@dataclass
class Comparison:
    """Every check, the task's metrics, and whether the graph's numbers are torch's within the budget."""

    checks: list[Check]
    task: list[TaskComparison]
    numbers_agree: bool


def compare(
    session: EncoderSession,
    multiple: int,
    model: InstructionModel,
    rows: list[list[int]],
    batches: list[Batch],
    budget: VerificationBudget,
    item_vectors: Floats | None,
    task: Task | None,
) -> Comparison:
    """Hold an encoder against torch, whatever runs it.

    Args:
        session: The encoder.
        multiple: Of a served length.
        model: The torch model, in FP32.
        rows: Token ids of real texts.
        batches: Of other shapes; see `shaped_batches`.
        budget: How far it may be from torch.
        item_vectors: As in `verify_encoder`.
        task: As in `verify_encoder`.
    """
    reference, candidate = _torch_over_texts(model, rows), encode_rows(session, rows, multiple)
    shaped = [(_torch(model, batch), encode(session, batch)) for batch in batches]
    finite = not_finite(candidate, *(found for _, found in shaped))
    if not finite.passed:
        return Comparison([finite], [], numbers_agree=False)
    mean, least, greatest = vector_checks(reference, candidate, budget)
    over_shapes = min(float(cosine(*pair).min()) for pair in shaped)
    neighbours, padding = _variance(session, rows, sorted({ids.shape[1] for ids, _ in batches}), multiple)
    numbers = [
        finite,
        mean,
        least,
        Check.at_least("minimum cosine over shapes", over_shapes, budget.shape_cosine),
        greatest,
        Check.at_most("difference that batch neighbours make", neighbours, budget.invariance),
        Check.at_most("difference that padding makes", padding, budget.invariance),
    ]
    weight, bias = (part.detach().numpy() for part in (model.head.weight, model.head.bias))
    sides = (reference, _logits(model, reference)), (candidate, through_head_graph(weight, bias, candidate))
    rest, measured = ranking_checks(*sides, budget, item_vectors, task)
    return Comparison([*numbers, *rest], measured, numbers_agree=all(check.passed for check in numbers))


def _torch_over_texts(model: InstructionModel, rows: list[list[int]]) -> Floats:
    """Torch's vectors of every text, texts of like length together."""
    batches = like_lengths(rows)
    vectors = np.concatenate([_torch(model, pad([rows[place] for place in places])) for places in batches])
    return vectors[np.argsort(np.concatenate(batches))]


def shaped_batches(rows: list[list[int]], buckets: Sequence[int], sizes: Sequence[int]) -> list[Batch]:
    """Real tokens at every bucket: one row that fills it, and batches of the other sizes of rows that do and do not."""
    joined = [token for row in rows for token in row]
    if not joined:
        raise ExportError(
            f"Not one of the {len(rows)} texts to verify on has a token. Give instructions in a language that the "
            "encoder's tokenizer knows, or another encoder."
        )
    while len(joined) < max(sizes) * max(buckets):
        joined = joined * 2
    batches = []
    for length in sorted(set(buckets)):
        full = [joined[start * length : (start + 1) * length] for start in range(max(sizes))]
        mixed = [full[index] if index % 2 else rows[index % len(rows)] for index in range(max(sizes))]
        batches += [pad(full[:1] if size == 1 else mixed[:size], length) for size in sizes]
    return batches


def _variance(session: EncoderSession, rows: list[list[int]], lengths: list[int], multiple: int) -> tuple[float, float]:
    """The greatest change to a text's vector that other texts in its batch make, and that padding to a bucket makes."""
    neighbours = padding = 0.0
    for index, row in enumerate(rows[:_INVARIANCE_TEXTS]):
        alone = encode(session, pad([row], multiple=multiple))
        others = [rows[(index + step) % len(rows)][: len(row)] for step in range(1, _NEIGHBOURS)]
        among = encode(session, pad([row, *others], multiple=multiple))[:1]
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
