"""What the graph that is served reaches on each test instruction: what a later release is compared with."""

from __future__ import annotations

from pathlib import Path

from export.graph_encoder import BATCH_SIZE, GraphEncoder
from export.task import Task
from serving.evidence import TaskResults, instruction_key
from training.dataset import Instruction
from training.run import Run

__all__ = ["measure_task", "test_instructions"]


def measure_task(run: Run, encoder: GraphEncoder, var: Path, limit: int) -> TaskResults | None:
    """Measures the head's accuracy and the ranking on a run's test instructions, one by one.

    By the run's own score, over the whole catalogue and without a history: what the index of a large catalogue misses
    is verified apart.

    Args:
        run: The run.
        encoder: Its encoder as it is served.
        var: Where the encoder's vectors are kept.
        limit: At most so many instructions.

    Returns:
        The results; None if the run has no test instructions.

    Raises:
        ExportError: The graph cannot be read or run.
        TrainingError: The cache cannot be used.
    """
    instructions = test_instructions(run, limit)
    if not instructions:
        return None
    vectors = encoder.cache(var).embed(encoder, [one.text for one in instructions], batch_size=BATCH_SIZE)
    weight, bias = run.head()
    logits = vectors @ weight.T + bias
    return TaskResults.of([_key(one) for one in instructions], Task(run, instructions).measure(vectors, logits))


def test_instructions(run: Run, limit: int) -> list[Instruction]:
    """At most so many test instructions: those of least key, so that a set that grew shares as many as it can."""
    return sorted(run.instructions("test"), key=_key)[:limit]


def _key(instruction: Instruction) -> str:
    return instruction_key(instruction.instruction_id, instruction.text, instruction.label or "")
