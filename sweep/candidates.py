"""What is tried: one question after another, each with the answers to those before it.

All combinations would take hours and say little more: how the steps are joined and what runs the encoder decide most,
the rest is tried around the best of those.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

from export.settings import Engine, ServingSettings

__all__ = ["QUESTIONS", "Question", "changed"]

BATCH_SIZES = (32, 64)
QUEUE_DELAYS = (0, 500, 2_000)
"""Microseconds."""
FINE_BUCKETS = (8, 16, 24, 32, 40, 48, 64)
"""Below these, lengths grow by doubling: few texts are longer."""

Answers = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """One thing that is tried.

    Attributes:
        name: in words.
        answers: what is tried, as changes of the settings so far; empty where there is nothing to choose.
    """

    name: str
    answers: Callable[[ServingSettings, int], Answers]


def changed(settings: ServingSettings, changes: Mapping[str, Any]) -> ServingSettings:
    """The settings with some of them changed."""
    return ServingSettings.model_validate(settings.model_dump() | dict(changes))


def _modes(_settings: ServingSettings, _cores: int) -> Answers:
    engines: list[Engine] = ["onnxruntime"]
    if importlib.util.find_spec("openvino") is not None:
        engines.append("openvino")
    return [{"mode": mode, "engine": engine} for mode in ("ensemble", "fused") for engine in engines]


def _instances(_settings: ServingSettings, cores: int) -> Answers:
    """Instances × threads within the cores, each core used."""
    return [
        {"encoder_instances": instances, "encoder_threads": cores // instances}
        for instances in range(1, cores + 1)
        if cores % instances == 0
    ]


def _buckets(settings: ServingSettings, _cores: int) -> Answers:
    """In one step, and for OpenVINO, texts are padded as their batch needs it, and buckets decide the warm-up alone."""
    if settings.mode == "fused":
        return []
    longest = settings.length_buckets[-1]
    doubled = list(takewhile(lambda length: length < longest, (16 * 2**step for step in count())))
    fine = [length for length in FINE_BUCKETS if length < longest]
    fine += [length for length in doubled if length > FINE_BUCKETS[-1]]
    return [{"length_buckets": (*lengths, longest)} for lengths in (doubled, fine)]


def _batch_sizes(_settings: ServingSettings, _cores: int) -> Answers:
    return [{"max_batch_size": size} for size in BATCH_SIZES]


def _queue_delays(_settings: ServingSettings, _cores: int) -> Answers:
    return [{"max_queue_delay_microseconds": delay} for delay in QUEUE_DELAYS]


QUESTIONS = (
    Question("steps and engine", _modes),
    Question("instances and threads", _instances),
    Question("length buckets", _buckets),
    Question("batch size", _batch_sizes),
    Question("queue delay", _queue_delays),
)
