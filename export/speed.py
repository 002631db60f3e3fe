"""How fast a graph is beside FP32. Shown next to its quality; it never decides about a release."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.graph_file import open_served
from export.head_graph import VECTOR
from export.settings import Engine

__all__ = ["SpeedRatio", "compare_speed"]

SHAPES = ((1, 16), (32, 32))
ROUNDS = 7


class SpeedRatio(BaseModel):
    """Time of a graph over that of FP32 at one shape, on one thread; below 1 is faster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    length: int
    ratio: float


def compare_speed(
    fp32: Path,
    graph: Path,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = ROUNDS,
    engine: Engine = "onnxruntime",
) -> tuple[SpeedRatio, ...]:
    """Runs both in turn, FP32 in ONNX Runtime and the graph in its engine.

    Returns the median of the ratios, pair by pair, at each (batch, length).

    Processor time is taken, so that other work on the machine counts less; caches are shared all the same.
    """
    sessions = [open_served(graph, engine), open_served(fp32, "onnxruntime")]
    found = []
    for batch, length in shapes:
        ones = np.ones((batch, length), dtype=np.int64)
        feed = {"input_ids": ones, "attention_mask": ones}
        ratios = []
        for turn in range(rounds + 1):
            spent = []
            for session in sessions:
                started = time.process_time()
                session.run([VECTOR], feed)
                spent.append(time.process_time() - started)
            if turn:  # the first one warms up
                ratios.append(spent[0] / max(spent[1], 1e-9))
        found.append(SpeedRatio(batch=batch, length=length, ratio=median(ratios)))
    return tuple(found)
