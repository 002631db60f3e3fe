"""Refuse requests at once while too many wait, so that the others are answered before their callers give up.

Triton's own bound, a queue policy, makes requests of a lightly loaded server wait (docs/serving.md). Without one its
queues take whatever comes, and above capacity every caller waits longer than the one before, until none is answered in
time. But Triton counts what waits, and a model can read that count.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from .limits import METRICS_VARIABLE, QUEUE_FULL

DEFAULT_ADDRESS = "127.0.0.1:8002"
LOOK_EVERY_SECONDS = 0.2
"""Reading the count takes 0.6 ms; what comes in between is the most by which the bound is passed."""
BLIND_SECONDS = 2.0
"""So long nothing is asked of metrics that could not be read, and nothing refused."""
FAILURES_SAID = 5
"""So often in a row they could not be read when it is logged: a starting server has none while its models warm up."""
PATIENCE_SECONDS = 0.2
PENDING = re.compile(rb'^nv_inference_pending_request_count\{model="([^"]*)",[^}]*\} ([0-9]+)', re.MULTILINE)
STEPS = ("tokenizer", "encoder", "head", "topk")
REFUSAL = f"{QUEUE_FULL}: too many requests wait already, send less at once or add servers"


def read_pending(models: Collection[str]) -> int:
    """How many requests wait for some models, all their versions together; for all models if none are named.

    Raises:
        OSError: the metrics cannot be read, or do not hold the count.
    """
    host, _, port = os.environ.get(METRICS_VARIABLE, DEFAULT_ADDRESS).rpartition(":")
    content = b""
    # A socket, because `http.client` takes 20 ms to import. Under HTTP/1.0 the end of the answer is that of the stream.
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while part := connection.recv(1 << 16):
            content += part
    counts = PENDING.findall(content)
    if not counts:
        raise OSError(f"{host}:{port}/metrics has no nv_inference_pending_request_count")
    return sum(int(count) for model, count in counts if not models or model.decode() in models)


def steps_beside(tokenizer: str) -> set[str]:
    """The models that a request goes through after the tokenizer of this name, and itself.

    None for a tokenizer that domains share (`tokenizer_<sha256>`): it cannot know them, so all models count.
    """
    domain, separator, _ = tokenizer.rpartition("_tokenizer")
    return {f"{domain}_{step}" for step in STEPS} if separator else set()


class Admission:
    """Refuses requests while too many wait."""

    def __init__(
        self,
        most_waiting: int,
        models: Collection[str],
        *,
        instances: int = 1,
        read: Callable[[Collection[str]], int] = read_pending,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the bound.

        Args:
            most_waiting: requests that may wait; 0: any number.
            models: whose queues count, by name; those of all models if none are named.
            instances: of this model, each of which refuses its share.
            read: gives how many requests wait for these models.
            clock: seconds.
        """
        self._most, self._models = most_waiting, models
        self._instances = instances
        self._read, self._clock = read, clock
        self._look_again = 0.0
        self._excess = 0
        self._failures = 0

    def split(self, requests: Sequence[Any]) -> tuple[list[Any], Sequence[Any]]:
        """Refuse the first of some requests, which have waited longest, as far as more wait than may.

        Returns:
            The refusals, one response a refused request, and the requests that are left.
        """
        if not self._most:
            return [], requests
        now = self._clock()
        if now >= self._look_again:
            self._look(now)
        refused = min(len(requests), self._excess)
        self._excess -= refused
        return [_refusal() for _ in range(refused)], requests[refused:]

    def _look(self, now: float) -> None:
        self._look_again = now + LOOK_EVERY_SECONDS
        try:
            self._excess = -(-max(0, self._read(self._models) - self._most) // self._instances)
            self._failures = 0
        except (OSError, ValueError) as error:
            self._excess = 0
            self._look_again = now + BLIND_SECONDS
            self._failures += 1
            if self._failures == FAILURES_SAID:
                pb_utils.Logger.log_error(f"cannot read how many requests wait ({error}), so none is refused")


def _refusal() -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(REFUSAL, pb_utils.TritonError.UNAVAILABLE))
