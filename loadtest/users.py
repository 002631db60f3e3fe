"""A person as Locust plays them: asks, reads the answer, asks again.

`python -m loadtest` runs this with an SLA and a report. To watch it in Locust's own web page instead:

    locust -f loadtest/users.py --host 127.0.0.1:8001 --instructions FILE --domain ecommerce
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from locust import User, constant, events, task  # patches the standard library for gevent, so it comes first
from locust.argument_parser import LocustArgumentParser

# isort: split
import grpc.experimental.gevent
from instructrec_client import Client, InstructRecError, Recommendations

from loadtest.workload import Query, WrongAnswer, check_answer, items_due, read_workload

__all__ = ["RecommendUser"]

# Before any channel exists: gRPC would otherwise block the one thread that all users share.
grpc.experimental.gevent.init_gevent()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: LocustArgumentParser, **_: object) -> None:
    parser.add_argument(
        "--instructions", required=True, help="JSON lines: a string, or an object with text and history"
    )
    parser.add_argument("--domain", default="ecommerce", help="the domain to ask")
    parser.add_argument("--k", type=int, default=10, help="how many items to ask for")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds that a request may take")


@lru_cache(maxsize=1)
def _workload(path: str) -> list[Query]:
    return read_workload(Path(path))


class RecommendUser(User):
    """Sends the domain's instructions in random order, the next one as soon as an answer is there."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect, as a backend service has done long before its first request counts."""
        options = self.environment.parsed_options
        self._k = int(options.k)
        self._queries = _workload(str(options.instructions))
        self._due = items_due(Path(options.instructions), self._k)
        self._client = Client(
            self.host or "127.0.0.1:8001",
            domain=options.domain,
            timeout=options.deadline,
            retries=0,  # a refusal is what is measured here, not what a retry makes of it
            # Otherwise gRPC lets all clients of a process share one connection.
            channel_args=[("grpc.use_local_subchannel_pool", 1)],
        )
        with suppress(InstructRecError):  # what is wrong with the server, the requests will tell
            self._client.ready()

    def on_stop(self) -> None:
        """Close the connection."""
        self._client.close()
        del self._client  # tears the channel down now, while gevent still runs

    @task
    def recommend(self) -> None:
        """Ask once and report the outcome to Locust; a wrong answer is a failure."""
        query = random.choice(self._queries)  # noqa: S311 - load, not a secret
        answer: Recommendations | None = None
        failure: Exception | None = None
        start = time.perf_counter()
        try:
            answer = self._client.recommend(query.text, history=query.history, k=self._k)
        except InstructRecError as error:
            failure = error
        latency_ms = (time.perf_counter() - start) * 1000
        if answer is not None:
            try:
                check_answer(answer, self._due)
            except WrongAnswer as error:
                failure = error
        self.environment.events.request.fire(
            request_type="grpc",
            name="recommend",
            response_time=latency_ms,
            response_length=len(answer or ()),
            response=answer,
            exception=failure,
            context={},
        )
