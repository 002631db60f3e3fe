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
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from .limits import METRICS_VARIABLE, QUEUE_FULL, REFUSED_METRIC

DEFAULT_ADDRESS = "127.0.0.1:8002"
LOOK_EVERY_SECONDS = 0.2
"""Reading the count takes 0.6 ms; what comes in between is the most by which the bound is passed."""
BLIND_SECONDS = 2.0
"""So long nothing is asked of metrics that could not be read, and nothing refused."""
FAILURES_SAID = 5
"""So often in a row they could not be read when it is logged: a starting server has none while its models warm up."""
PATIENCE_SECONDS = 0.2
COUNT = re.compile(
    rb'^nv_inference_(pending_request_count|request_success)\{[^}]*model="([^"]*)"[^}]*version="([^"]*)"[^}]*\} (\S+)',
    re.MULTILINE,
)
WAITING, TAKEN = "pending_request_count", "request_success"
"""Triton counts a request that a step refused as one that the step has taken and done with."""
KEPT = 0.9
"""What requests came counts so much at the next look: a moment's batch does not tell how people are shared out."""
SHARED_TOKENIZER = r"tokenizer_[0-9a-f]{12}"
REFUSAL = f"{QUEUE_FULL}: too many requests wait already, send less at once or add servers"

Version = tuple[str, str]
"""A model and its version."""


def read_metrics() -> bytes:
    """What the server publishes of itself.

    Raises:
        OSError: nothing answers there.
    """
    host, _, port = os.environ.get(METRICS_VARIABLE, DEFAULT_ADDRESS).rpartition(":")
    content = b""
    # A socket, because `http.client` takes 20 ms to import. Under HTTP/1.0 the end of the answer is that of the stream.
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while part := connection.recv(1 << 16):
            content += part
    return content


def queues_of(first_step: str) -> str:
    """The models whose queues hold what has come through a first step, and its own, as a regular expression.

    A tokenizer that domains share cannot know them by name. What they have in common with it are shared encoders; the
    queues of a domain's own steps are no concern of the others.
    """
    domain, separator, _ = first_step.rpartition("_tokenizer")
    if separator:
        return rf"{re.escape(domain)}_(tokenizer|encoder|head|topk)"
    if re.fullmatch(SHARED_TOKENIZER, first_step):
        return rf"{SHARED_TOKENIZER}|encoder_[0-9a-f]{{12}}"
    return re.escape(first_step)


class Admission:
    """Refuses requests while too many wait. Belongs to one version of a domain's first step.

    Several versions stand beside each other while a canary is up, and all count the same queues. So each refuses its
    part of what is too much: as large as its part of the requests that came lately.
    """

    def __init__(
        self,
        most_waiting: int,
        model: str,
        version: str,
        *,
        instances: int = 1,
        read: Callable[[], bytes] = read_metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the bound.

        Args:
            most_waiting: requests that may wait; 0: any number.
            model: the first step's name.
            version: its version.
            instances: of it, each of which refuses its part.
            read: gives the server's metrics.
            clock: seconds.
        """
        self._most, self._own = most_waiting, (model, version)
        self._queues = re.compile(queues_of(model))
        self._first_steps = re.compile(SHARED_TOKENIZER if re.fullmatch(SHARED_TOKENIZER, model) else re.escape(model))
        self._instances = instances
        self._read, self._clock = read, clock
        self._look_again = 0.0
        self._excess = 0.0
        self._taken: dict[Version, float] = {}
        self._lately: dict[Version, float] = {}
        self._failures = 0
        self._refused_family = pb_utils.MetricFamily(  # kept: a metric whose family is collected is dead
            name=REFUSED_METRIC,
            description="Requests refused because too many waited",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._refused = self._refused_family.Metric(labels={"model": model, "version": version})

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
        refused = min(len(requests), int(self._excess))
        self._excess -= refused
        if refused:
            self._refused.increment(refused)
        return [_refusal() for _ in range(refused)], requests[refused:]

    def close(self) -> None:
        """Let go of the metric while there is a server to tell, for later the stub would crash."""
        del self._refused, self._refused_family

    def _look(self, now: float) -> None:
        self._look_again = now + LOOK_EVERY_SECONDS
        try:
            waiting, taken = self._counts()
            part = max(0.0, waiting - self._most) * self._part_of(taken) / self._instances
            self._excess = part + self._excess % 1  # whose part is half a request refuses at every second look
            self._failures = 0
        except (OSError, ValueError) as error:
            self._excess = 0.0
            self._look_again = now + BLIND_SECONDS
            self._failures += 1
            if self._failures == FAILURES_SAID:
                pb_utils.Logger.log_error(f"cannot read how many requests wait ({error}), so none is refused")

    def _counts(self) -> tuple[float, dict[Version, float]]:
        """How many requests wait, and how many each version of the first step has taken since it was loaded.

        Raises:
            OSError: the metrics cannot be read.
            ValueError: they are not this server's, or lack the counts.
        """
        counts: dict[str, dict[Version, float]] = {WAITING: {}, TAKEN: {}}
        for kind, model, version, count in COUNT.findall(self._read()):
            counts[kind.decode()][model.decode(), version.decode()] = float(count)
        if self._own not in counts[WAITING]:
            model, version = self._own
            raise ValueError(f"the metrics have no nv_inference_{WAITING} of {model} {version}")
        waiting = sum(count for one, count in counts[WAITING].items() if self._queues.fullmatch(one[0]))
        return waiting, {one: count for one, count in counts[TAKEN].items() if self._first_steps.fullmatch(one[0])}

    def _part_of(self, taken: dict[Version, float]) -> float:
        """This version's part of the requests that came lately to the first step."""
        self._lately = {
            one: KEPT * self._lately.get(one, 0.0) + max(0.0, count - self._taken.get(one, count))
            for one, count in taken.items()
        }
        self._taken = taken
        total = sum(self._lately.values())
        return self._lately.get(self._own, 0.0) / total if total else 1.0


def _refusal() -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(REFUSAL, pb_utils.TritonError.UNAVAILABLE))
