"""Who is measured: the service over gRPC, and the plain one over HTTP, with a number of requests always in flight."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from instructrec_client import AsyncClient, InstructRecError, QueueFull

from loadtest.benchmark.plain_service import answer_of
from loadtest.errors import LoadTestError, queue_too_short
from loadtest.workload import Query, shuffled

Ask = Callable[[Query], Awaitable[None]]
NUMERIC_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE")
START_SECONDS = 60.0


async def keep_asking(ask: Ask, queries: Sequence[Query], in_flight: int, seconds: float) -> tuple[float, float]:
    """Keep a number of requests in flight for a while.

    Returns:
        The median milliseconds of a request, and answers a second.
    """
    times: list[float] = []
    turns = itertools.cycle(shuffled(queries))

    async def one(end: float) -> None:
        while (sent := time.perf_counter()) < end:
            query = next(turns)
            await ask(query)
            times.append((time.perf_counter() - sent) * 1_000)

    for query in queries[: 2 * in_flight]:
        await ask(query)
    began = time.perf_counter()
    await asyncio.gather(*(one(began + seconds) for _ in range(in_flight)))
    return float(np.median(times)), len(times) / (time.perf_counter() - began)


async def ask_service(
    url: str, domain: str, queries: Sequence[Query], in_flight: int, seconds: float
) -> tuple[float, float]:
    """Measure the live service; see `keep_asking`.

    Raises:
        LoadTestError: a request failed; a benchmark of errors means nothing.
    """
    try:
        async with AsyncClient(url, domain=domain, timeout=30.0) as client:

            async def ask(query: Query) -> None:
                await client.recommend(query.text, history=query.history)

            return await keep_asking(ask, queries, in_flight, seconds)
    except QueueFull:
        raise queue_too_short(url, in_flight) from None
    except InstructRecError as error:
        raise LoadTestError(f"{url}: {error}") from None


async def ask_plain(
    port: int, door: str, queries: Sequence[Query], in_flight: int, seconds: float
) -> tuple[float, float]:
    """Measure a door of the plain service, "recommend" or "encode"; see `keep_asking`.

    Raises:
        LoadTestError: it failed.
    """
    url = f"http://127.0.0.1:{port}/{door}"
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

            async def ask(query: Query) -> None:
                async with session.post(url, json={"instruction": query.text, "top_k": 10}) as answer:
                    answer.raise_for_status()
                    if len(answer_of(await answer.read())) != 10:
                        raise LoadTestError("the plain service answered with fewer items than were asked for")

            return await keep_asking(ask, queries, in_flight, seconds)
    except aiohttp.ClientError as error:
        raise LoadTestError(f"the plain service failed: {error}") from None


@contextlib.contextmanager
def plain_service_process(release: Path, domain: str, server: int) -> Iterator[tuple[int, int]]:
    """Run the plain service in a process of its own; yields its process number and port.

    Args:
        release: the folder of the release.
        domain: its domain.
        server: the process that it is held against: numeric libraries get the settings that they have there.

    Raises:
        LoadTestError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    ours = psutil.Process(server).environ()
    options = ("--release", str(release), "--domain", domain, "--port", str(port))
    process = subprocess.Popen(  # noqa: S603 - every part of the command is ours
        [sys.executable, "-m", "loadtest.benchmark.plain_service", *options],
        stdin=subprocess.DEVNULL,
        env={name: ours[name] for name in NUMERIC_SETTINGS if name in ours} | {"PATH": "/usr/bin:/bin"},
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LoadTestError("the plain FastAPI service, the baseline, does not start")
            time.sleep(0.1)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
