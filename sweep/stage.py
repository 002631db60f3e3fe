"""One server that holds several ways to serve a release, asked in turns."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.settings import ServingSettings
from loadtest.benchmark.cores import pin
from loadtest.workload import Query
from serving.embedded import Endpoints
from serving.files import remove
from serving.layout import Layout
from serving.server import Server
from sweep.variant import ReleaseParts

__all__ = ["Ask", "Candidate", "Rates", "Stage", "gain"]

Ask = Callable[[str, str, Sequence[Query], int, float], tuple[float, float]]
"""Asks an ensemble at a gRPC address with so many in flight for so many seconds: p50 in ms, and answers a second."""


@dataclass(frozen=True)
class Candidate:
    """One way to serve the release.

    Attributes:
        name: in words, for people.
        settings: how.
        batching: False: without Triton's dynamic batching.
    """

    name: str
    settings: ServingSettings
    batching: bool = True


@dataclass(frozen=True)
class Rates:
    """What was measured of a candidate.

    Attributes:
        p50_ms: by number in flight, a round each.
        per_second: likewise, answers a second.
    """

    p50_ms: Mapping[int, tuple[float, ...]]
    per_second: Mapping[int, tuple[float, ...]]


def gain(candidate: Rates, reference: Rates) -> tuple[float, ...]:
    """How much faster a candidate answers, one number a round: 1 is the same.

    With a number always in flight, the rate is that number over the mean latency; so the geometric mean of the ratios
    of rates, over few and many in flight, weighs latency and throughput alike.
    """
    ratios = [np.divide(candidate.per_second[number], reference.per_second[number]) for number in candidate.per_second]
    return tuple(np.exp(np.mean(np.log(ratios), axis=0)).tolist())


class Stage:
    """Serves candidates side by side: idle ones take memory, and no time of the others."""

    def __init__(self, parts: ReleaseParts, var: Path, cores: frozenset[int], asking: frozenset[int]) -> None:
        """Take what is needed.

        Args:
            parts: the release.
            var: a folder of this sweep's own, on the disk of the releases.
            cores: where the server runs.
            asking: where the load runs.
        """
        self._parts = parts
        self._layout = Layout(var)
        self._server = Server(self._layout)
        self._cores, self._asking = cores, asking

    def measure(
        self,
        candidates: Sequence[Candidate],
        ask: Ask,
        queries: Sequence[Query],
        in_flight: Sequence[int],
        *,
        rounds: int,
        seconds: float,
        progress: Callable[[], object],
    ) -> list[Rates]:
        """Measure candidates in turns; each round has another order of them.

        Args:
            candidates: what to measure.
            ask: applies the load.
            queries: what is asked.
            in_flight: how many requests at once.
            rounds: how often.
            seconds: how long each time.
            progress: called each time.

        Raises:
            ServingError: the server does not start.
            LoadTestError: a request failed.
        """
        names = [f"candidate_{number}" for number in range(len(candidates))]
        seen: list[dict[int, list[tuple[float, float]]]] = [{n: [] for n in in_flight} for _ in candidates]
        with self._serving(dict(zip(names, candidates, strict=True))) as url:
            for name in names:
                ask(url, name, queries, max(in_flight), min(0.5, seconds))
            for turn in range(rounds):
                for number in in_flight:
                    for place in range(len(names)):
                        chosen = (place + turn) % len(names)
                        seen[chosen][number].append(ask(url, names[chosen], queries, number, seconds))
                        progress()
        return [
            Rates(
                p50_ms={n: tuple(p50 for p50, _ in values) for n, values in one.items()},
                per_second={n: tuple(rate for _, rate in values) for n, values in one.items()},
            )
            for one in seen
        ]

    @contextlib.contextmanager
    def _serving(self, candidates: Mapping[str, Candidate]) -> Iterator[str]:
        self.clear()
        self._layout.live.mkdir(parents=True)
        affinity = os.sched_getaffinity(0)
        try:
            for name, candidate in candidates.items():
                self._parts.lay_out(self._layout.live, name, candidate.settings, batching=candidate.batching)
            state = self._server.start(free_endpoints(), list(candidates))
            self._server.wait_until_ready(state, list(candidates))
            pin(state.pid, self._cores)
            os.sched_setaffinity(0, self._asking)
            yield state.endpoints.grpc_url
        finally:
            os.sched_setaffinity(0, affinity)
            self.clear()

    def clear(self) -> None:
        """End the server and remove what was laid out, also of a sweep that was killed."""
        self._server.stop(drain_seconds=1)
        remove(self._layout.live)


def free_endpoints() -> Endpoints:
    """Three ports of the loopback address that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        grpc_port, http_port, metrics_port = (int(one.getsockname()[1]) for one in sockets)
    return Endpoints(grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
