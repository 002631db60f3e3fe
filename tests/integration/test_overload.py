"""With more requests than it may let wait, a server refuses some at once and answers the others, and is well after it.

A step that is stopped again and again lets requests pile up as overload does, on a machine of any speed.
"""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from instructrec_client import AsyncClient, QueueFull
from project import Project, free_ports

from export.settings import ServingSettings
from serving import process_tree
from serving.canary.evidence import count_refused
from serving.embedded import Endpoints
from serving.layout import Layout
from serving.releases import Release
from serving.server import Server, ServerState
from sweep.variant import ReleaseParts

BOUND = 20
TEXT = "a blue shirt"
SLOWEST = {"ensemble": "encoder", "fused": "fused"}
"""By the name of what is served: the step that takes longest."""


@pytest.fixture(scope="module")
def bounded(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Layout, ServerState]]:
    """A server with short queues, which answers in four steps and in one."""
    layout = Layout(tmp_path_factory.mktemp("bounded"))
    parts = ReleaseParts.of(Release(small.var / "releases" / "ecommerce" / "1"))
    for mode in SLOWEST:
        settings = ServingSettings(mode=mode, max_queue_size=BOUND, length_buckets=(16, 64))
        parts.lay_out(layout.live, mode, settings)
    grpc_port, http_port, metrics_port = free_ports(3)
    server = Server(layout)
    try:
        state = server.start(
            Endpoints(grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port), list(SLOWEST)
        )
        server.wait_until_ready(state, list(SLOWEST))
        time.sleep(2)  # so long nothing is asked of metrics that were not there yet while the steps warmed up
        yield layout, state
    finally:
        server.stop(drain_seconds=1)


@contextmanager
def slow_step(layout: Layout, model: str) -> Iterator[None]:
    """A step stands still most of the time, never for a second: Triton would give it up."""
    [stub] = [
        one
        for one in process_tree.processes(layout.shared_memory_prefix)
        if any(f"live/{model}/" in part for part in one.cmdline())
    ]
    ended = threading.Event()

    def slow_down() -> None:
        while not ended.is_set():
            stub.suspend()
            ended.wait(0.3)
            stub.resume()
            ended.wait(0.06)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def ask(client: AsyncClient, count: int) -> list[asyncio.Task[str]]:
    async def one() -> str:
        try:
            return (await client.recommend(TEXT)).release
        except QueueFull as error:
            return str(error)

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("mode", SLOWEST)
async def test_what_is_too_much_is_refused_and_the_rest_is_answered(
    bounded: tuple[Layout, ServerState], mode: str
) -> None:
    layout, state = bounded
    async with AsyncClient(state.endpoints.grpc_url, domain=mode, timeout=60, retries=0) as client:
        await client.recommend(TEXT)
        tasks: list[asyncio.Task[str]] = []
        with slow_step(layout, f"{mode}_{SLOWEST[mode]}"):
            for burst in range(60):
                tasks += await ask(client, 8 * BOUND)
                await asyncio.sleep(0.25)
                # On a busy machine the step stands still less often than it is meant to.
                if burst >= 5 and sum(task.done() and task.result() != "1" for task in tasks) >= BOUND:
                    break
            seen = Counter(await asyncio.gather(*tasks))
    assert seen.pop("1") >= BOUND
    assert sum(seen.values()) >= BOUND
    assert all("is full" in reason or "held back" in reason for reason in seen), seen
    async with AsyncClient(state.endpoints.grpc_url, domain=mode, timeout=60, retries=0) as client:
        assert {await task for task in await ask(client, BOUND)} == {"1"}


def test_nothing_waits_afterwards_and_the_count_could_be_read(bounded: tuple[Layout, ServerState]) -> None:
    layout, state = bounded
    with urllib.request.urlopen(f"http://{state.endpoints.metrics_address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    waiting = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
    assert waiting
    assert all(line.endswith(" 0") for line in waiting)
    for first_step in ("ensemble_tokenizer", "fused_fused"):
        assert count_refused(state.endpoints, first_step, 1) >= BOUND
    assert "cannot read how many requests wait" not in layout.server_log.read_text()
