"""What the graph that is served reaches on each test instruction: what a later release is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph_file import open_session
from export.task import Task
from export.tokens import pad, tokenize
from export.verify import encode
from serving.evidence import TaskResults, instruction_key
from training.dataset import Instruction
from training.run import Run

__all__ = ["measure_task", "test_instructions"]

_BATCH = 32


def measure_task(run: Run, graph: Path, limit: int) -> TaskResults | None:
    """Measures the head's accuracy and the ranking on a run's test instructions, one by one.

    By the run's own score, over the whole catalogue and without a history: what the index of a large catalogue misses
    is verified apart.

    Args:
        run: The run.
        graph: Its encoder as it is served.
        limit: At most so many instructions.

    Returns:
        The results; None if the run has no test instructions.

    Raises:
        ExportError: The graph cannot be read or run.
    """
    instructions = test_instructions(run, limit)
    if not instructions:
        return None
    model = run.load_model()
    session = open_session(graph)
    rows = tokenize(model, [one.text for one in instructions])
    order = np.argsort([len(row) for row in rows], kind="stable")  # texts of like length together
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    vectors = np.concatenate([encode(session, pad([rows[row] for row in batch])) for batch in batches])
    vectors = vectors[np.argsort(order)]
    logits = vectors @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    return TaskResults.of([_key(one) for one in instructions], Task(run, instructions).measure(vectors, logits))


def test_instructions(run: Run, limit: int) -> list[Instruction]:
    """At most so many test instructions: those of least key, so that a set that grew shares as many as it can."""
    return sorted(run.instructions("test"), key=_key)[:limit]


def _key(instruction: Instruction) -> str:
    return instruction_key(instruction.instruction_id, instruction.text, instruction.label or "")
