"""How much feedback a server takes, and what that does to recommendations: `python -m loadtest.feedback_bench`.

First events alone, as many as go through, in requests of several sizes: from the Python client, and as bytes that were
serialised before, which tells what the server takes where the senders are elsewhere. Then recommendations at a steady
rate, in turns with and without feedback beside them; a machine's speed drifts, so only the ratio of neighbouring turns
means anything.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path

import click
import grpc
import numpy as np
from instructrec_client import AsyncClient, Feedback, InstructRecError
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from tritonclient.grpc import service_pb2

from loadtest.open_loop import arrivals, ask_server, run_open_loop
from loadtest.workload import Query, read_workload

TEXTS = ("event", "item_id", "request_id", "user_id", "instruction", "release")
SIZES = {1: 64, 32: 8, 256: 4}
"""Events a request, and how many such requests are in flight."""
DEADLINE_S = 30.0
Send = Callable[[int], Awaitable[None]]
"""Sends one request, the events from a number on; returns when they are acknowledged."""


class Throughput(BaseModel):
    """Events taken in requests of one size, the median over the rounds.

    Attributes:
        events: in a request.
        serialised: whether requests were sent as bytes that were there before.
        in_flight: requests at once.
        per_second: events acknowledged a second.
        p50_ms: until a request was acknowledged.
        p99_ms: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: int
    serialised: bool
    in_flight: int
    per_second: float
    p50_ms: float
    p99_ms: float


class Harm(BaseModel):
    """Recommendations beside feedback, the medians over the rounds.

    Attributes:
        recommend_rate: recommendations asked for a second.
        feedback_rate: events sent a second, one a request.
        p50_ms_without, p99_ms_without: of recommendations alone.
        p50_ms_with, p99_ms_with: of recommendations with feedback beside them.
        p50_ratio, p99_ratio: with to without in neighbouring turns.
        p99_ratios: that of each round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recommend_rate: float
    feedback_rate: float
    p50_ms_without: float
    p50_ms_with: float
    p99_ms_without: float
    p99_ms_with: float
    p50_ratio: float
    p99_ratio: float
    p99_ratios: list[float]


def _event(query: Query) -> Feedback:
    return Feedback("click", "sku-1", user_id="somebody", instruction=query.text, request_id="bench", release="1")


@asynccontextmanager
async def _client_sender(url: str, domain: str, queries: list[Query], size: int) -> AsyncIterator[Send]:
    async with AsyncClient(url, domain=domain, timeout=DEADLINE_S, retries=0) as client:

        async def send(number: int) -> None:
            await client.feedback_batch([_event(queries[(number + row) % len(queries)]) for row in range(size)])

        yield send


@asynccontextmanager
async def _serialised_sender(url: str, domain: str, queries: list[Query], size: int) -> AsyncIterator[Send]:
    """Sends one request's bytes again and again, with other event ids in them."""
    run = secrets.token_hex(8).encode()  # the events of earlier runs are in the store still
    placeholder = b"#" * (len(run) + 8)
    content = _serialised(domain, [_event(queries[row % len(queries)]) for row in range(size)], placeholder)
    async with grpc.aio.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def send(number: int) -> None:
            response = await call(content.replace(placeholder, run + b"%08d" % number), timeout=DEADLINE_S)
            [stored] = service_pb2.ModelInferResponse.FromString(response).raw_output_contents
            if not np.frombuffer(stored, "<i4").all():
                raise click.ClickException("an event of this measurement was in the store before")

        yield send


def _serialised(domain: str, events: list[Feedback], prefix: bytes) -> bytes:
    """A request as it goes over the wire (docs/feedback.md); its event ids are the prefix and the row."""
    request = service_pb2.ModelInferRequest(model_name="feedback")
    texts = {name: [getattr(one, name).encode() for one in events] for name in TEXTS}
    texts["event_id"] = [prefix + b"-%d" % row for row in range(len(events))]
    texts["domain"] = [domain.encode()] * len(events)
    for name, cells in texts.items():
        request.inputs.add(name=name, datatype="BYTES", shape=(len(events), 1))
        request.raw_input_contents.append(b"".join(len(cell).to_bytes(4, "little") + cell for cell in cells))
    request.inputs.add(name="timestamp", datatype="INT64", shape=(len(events), 1))
    request.raw_input_contents.append(np.array([one.timestamp * 1_000 for one in events], "<i8").tobytes())
    return bytes(request.SerializeToString())


async def _closed_loop(
    url: str, domain: str, queries: list[Query], size: int, seconds: float, *, serialised: bool = False
) -> Throughput:
    """Send events as fast as they are acknowledged."""
    times: list[float] = []
    numbers = itertools.count(0, size)
    async with (_serialised_sender if serialised else _client_sender)(url, domain, queries, size) as send:
        start = time.perf_counter()

        async def sender() -> None:
            while time.perf_counter() - start < seconds:
                sent = time.perf_counter()
                try:
                    await send(next(numbers))
                except (InstructRecError, grpc.aio.AioRpcError) as error:
                    reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                    raise click.ClickException(f"{url} took no feedback ({size} events a request): {reason}") from error
                times.append((time.perf_counter() - sent) * 1_000)

        await asyncio.gather(*(sender() for _ in range(SIZES[size])))
        per_second = len(times) * size / (time.perf_counter() - start)
    p50, p99 = np.percentile(times, [50, 99])
    return Throughput(
        events=size, serialised=serialised, in_flight=SIZES[size], per_second=per_second, p50_ms=p50, p99_ms=p99
    )


def _send_at_rate(url: str, domain: str, queries: list[Query], rate: float, seconds: float) -> None:
    """Send single events at random moments of a rate; runs in a process of its own, beside the one that measures."""

    async def send() -> None:
        async with AsyncClient(url, domain=domain, timeout=DEADLINE_S) as client:
            start = time.perf_counter()
            under_way: list[Awaitable[bool]] = []
            for number, moment in enumerate(arrivals(rate, seconds)):
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                under_way.append(asyncio.create_task(client.feedback(_event(queries[number % len(queries)]))))
            await asyncio.gather(*under_way)

    asyncio.run(send())


def _recommend(url: str, domain: str, queries: list[Query], rate: float, seconds: float) -> tuple[float, float]:
    """The p50 and p99 of recommendations at a rate, in milliseconds."""

    async def run() -> tuple[float, float]:
        async with AsyncClient(url, domain=domain, timeout=DEADLINE_S) as client:
            summary = await run_open_loop(ask_server(client, queries, 10), rate=rate, duration_s=seconds)
            if summary.failures or summary.p50_ms is None or summary.p99_ms is None:
                raise click.ClickException(f"recommendations failed: {summary.errors}")
            return summary.p50_ms, summary.p99_ms

    return asyncio.run(run())


def measure_harm(
    url: str, domain: str, queries: list[Query], rates: tuple[float, float], rounds: int, seconds: float
) -> Harm:
    """Measure recommendations in turns, alone and with feedback beside them, the order changing with each round."""
    recommend_rate, feedback_rate = rates
    processes = multiprocessing.get_context("spawn")
    results: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in tqdm(range(2 * rounds), desc="recommendations", unit="turn"):
        with_feedback = number % 4 in {1, 2}
        if with_feedback:
            # The process takes a second to start; it sends until after the measurement has ended.
            arguments = (url, domain, queries, feedback_rate, seconds + 6)
            sender = processes.Process(target=_send_at_rate, args=arguments)
            sender.start()
            time.sleep(4)
        results[with_feedback].append(_recommend(url, domain, queries, recommend_rate, seconds))
        if with_feedback:
            sender.join()
            if sender.exitcode:
                raise click.ClickException("the sender of feedback failed, so nothing was beside the recommendations")
    without, beside = np.array(results[False]), np.array(results[True])
    ratios = beside / without
    return Harm(
        recommend_rate=recommend_rate,
        feedback_rate=feedback_rate,
        p50_ms_without=np.median(without[:, 0]),
        p50_ms_with=np.median(beside[:, 0]),
        p99_ms_without=np.median(without[:, 1]),
        p99_ms_with=np.median(beside[:, 1]),
        p50_ratio=np.median(ratios[:, 0]),
        p99_ratio=np.median(ratios[:, 1]),
        p99_ratios=[float(one) for one in ratios[:, 1]],
    )


def measure_throughput(url: str, domain: str, queries: list[Query], rounds: int, seconds: float) -> list[Throughput]:
    """Measure each size of request in turn, from the client and serialised, for several rounds."""
    results: dict[tuple[bool, int], list[Throughput]] = {
        (serialised, size): [] for serialised in (False, True) for size in SIZES
    }
    for _ in tqdm(range(rounds), desc="events", unit="round"):
        for (serialised, size), found in results.items():
            found.append(asyncio.run(_closed_loop(url, domain, queries, size, seconds, serialised=serialised)))
    return [sorted(found, key=lambda one: one.per_second)[len(found) // 2] for found in results.values()]


@click.command()
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="The server's gRPC endpoint.")
@click.option("--domain", default="ecommerce", show_default=True, help="The domain to ask.")
@click.option("--instructions", type=click.Path(path_type=Path), required=True, help="JSON lines with `text`.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True)
@click.option("--recommend-rate", default=20.0, show_default=True, help="Recommendations a second.")
@click.option("--feedback-rate", default=50.0, show_default=True, help="Events a second beside them, one a request.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("var", "bench"), show_default=True)
def main(
    url: str,
    domain: str,
    instructions: Path,
    rounds: int,
    seconds: float,
    recommend_rate: float,
    feedback_rate: float,
    output_dir: Path,
) -> None:
    """Measure a server; the events stay in its store, under the domain `<domain>-bench`."""
    queries = read_workload(instructions)
    asyncio.run(_closed_loop(url, f"{domain}-bench", queries, 32, 1.0))
    throughput = measure_throughput(url, f"{domain}-bench", queries, rounds, seconds)
    table = Table("sent by", "events a request", "in flight", "events/s", "p50 ms", "p99 ms", box=None, pad_edge=False)
    for one in throughput:
        figures = (f"{one.per_second:.0f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}")
        sender = "serialised before" if one.serialised else "Python client"
        table.add_row(sender, f"{one.events}", f"{one.in_flight}", *figures)
    Console().print(table)
    harm = measure_harm(url, domain, queries, (recommend_rate, feedback_rate), rounds, seconds)
    click.echo(
        f"{recommend_rate:g} recommendations/s: p99 {harm.p99_ms_without:.1f} ms alone, {harm.p99_ms_with:.1f} ms "
        f"beside {feedback_rate:g} events/s; ratio {harm.p99_ratio:.2f} (p50 {harm.p50_ratio:.2f})"
    )
    content = {"throughput": [one.model_dump() for one in throughput], "harm": harm.model_dump()}
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"feedback-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
