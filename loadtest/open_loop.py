"""Load that does not wait for the server.

Closed-loop users slow down together with the server and so hide what people feel when it is overloaded. Here requests
come at random moments of a given rate (a Poisson process), and each latency counts from the moment the request was due,
not from the moment there was room to send it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from instructrec_client import AsyncClient, InstructRecError

from loadtest.summary import OpenLoopSummary, Recorder
from loadtest.workload import Query, WrongAnswer, check_answer

__all__ = ["Send", "arrivals", "ask_server", "run_open_loop"]

Send = Callable[[int], Awaitable[str]]
"""Sends the request with a number and returns the release that answered."""

MOST_UNDER_WAY = 256
"""Requests that may be under way at once; more wait, and their latency with them."""
LATE_AFTER_S = 0.02
"""Seconds after its time from which a request is called late; below lies the event loop's own delay."""
OVERTIME_S = 5.0
"""Seconds after the last arrival in which waiting requests may still be sent."""


def arrivals(rate: float, duration_s: float, seed: int = 0) -> list[float]:
    """Return the moments of a Poisson process, in seconds from its start.

    Args:
        rate: Arrivals a second, on average.
        duration_s: Length of the process in seconds.
        seed: The same seed gives the same moments.
    """
    random = np.random.default_rng(seed)
    moments: list[float] = []
    moment = random.exponential(1 / rate)
    while moment < duration_s:
        moments.append(float(moment))
        moment += random.exponential(1 / rate)
    return moments


async def run_open_loop(
    send: Send,
    *,
    rate: float,
    duration_s: float,
    most_under_way: int = MOST_UNDER_WAY,
    overtime_s: float = OVERTIME_S,
    progress: Callable[[], None] = lambda: None,
) -> OpenLoopSummary:
    """Send requests at a rate and return what came of them.

    Args:
        send: Sends one request; an `InstructRecError` or `WrongAnswer` that it raises counts as a failure.
        rate: Requests a second.
        duration_s: Seconds in which requests are due.
        most_under_way: Requests that may be under way at once.
        overtime_s: Seconds after `duration_s` in which waiting requests are still sent; the rest is dropped.
        progress: Called once a scheduled request.
    """
    recorder = Recorder()
    moments = arrivals(rate, duration_s)
    room = asyncio.Semaphore(most_under_way)
    start = time.perf_counter()
    late = 0

    async def one(number: int, due: float) -> None:
        try:
            release = await send(number)
            recorder.answered((time.perf_counter() - due) * 1000, release)
        except (InstructRecError, WrongAnswer) as error:
            recorder.failed(_reason(error))
        finally:
            room.release()

    tasks: list[asyncio.Task[None]] = []
    for number, moment in enumerate(moments):
        due = start + moment
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        left = start + duration_s + overtime_s - time.perf_counter()
        try:
            await asyncio.wait_for(room.acquire(), timeout=max(0.0, left))
        except asyncio.TimeoutError:
            break
        late += time.perf_counter() - due > LATE_AFTER_S
        tasks.append(asyncio.create_task(one(number, due)))
        progress()
    await asyncio.gather(*tasks)
    dropped = len(moments) - len(tasks)
    for _ in range(dropped):
        recorder.failed("dropped: the run was over before there was room to send it")
    measured = recorder.summary(duration_s=max(duration_s, time.perf_counter() - start))
    return OpenLoopSummary(
        **measured.model_dump(), rate=rate, scheduled=len(moments), sent=len(tasks), late=late, dropped=dropped
    )


def ask_server(client: AsyncClient, queries: list[Query], k: int, due: int | None = None) -> Send:
    """Return what sends a workload's queries in turn and checks the answers.

    Args:
        client: Sends them.
        queries: What is asked.
        k: How many items are asked for.
        due: How many an answer has to have; `k` where left out.
    """

    async def send(number: int) -> str:
        query = queries[number % len(queries)]
        answer = await client.recommend(query.text, history=query.history, k=k)
        check_answer(answer, k if due is None else due)
        return answer.release

    return send


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
