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
from dataclasses import replace

import pytest
from conftest import copy_of
from instructrec_client import AsyncClient, QueueFull
from project import Project

from serving import process_tree
from serving.layout import Layout

BOUND = 20
TEXT = "a blue shirt"


@pytest.fixture(scope="module", params=["ensemble", "fused"])
def bounded(
    small: Project, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Project]:
    """A server whose queue is short."""
    project = copy_of(small, tmp_path_factory.mktemp("bounded") / "var")
    settings = (f"serving.max_queue_size={BOUND}", f"serving.mode={request.param}")
    project = replace(project, settings=project.settings + settings)
    try:
        project.make("export", "PRECISION=fp32")
        project.make("deploy")
        time.sleep(2)  # so long nothing is asked of metrics that were not there yet while the steps warmed up
        yield project
    finally:
        project.make("stop", check=False)


def waiting(project: Project) -> int:
    """How many requests wait, as the server counts them."""
    with urllib.request.urlopen(f"http://{project.metrics_url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith("nv_inference_pending_request_count{"))


@contextmanager
def slow_step(project: Project) -> Iterator[None]:
    """The encoder, or the one step that does all, stands still most of the time.

    Never for a second: Triton would give it up.
    """
    prefix = Layout(project.var).shared_memory_prefix
    [stub] = [
        one
        for one in process_tree.processes(prefix)
        if any(f"live/ecommerce_{step}/" in part for part in one.cmdline() for step in ("encoder", "fused"))
    ]
    ended = threading.Event()

    def slow_down() -> None:
        while not ended.is_set():
            stub.suspend()
            ended.wait(0.4)
            stub.resume()
            ended.wait(0.02)

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


async def test_what_is_too_much_is_refused_and_the_rest_is_answered(bounded: Project) -> None:
    async with AsyncClient(bounded.grpc_url, timeout=60, retries=0) as client:
        await client.recommend(TEXT)
        tasks: list[asyncio.Task[str]] = []
        with slow_step(bounded):
            for _ in range(8):
                tasks += await ask(client, 5 * BOUND)
                await asyncio.sleep(0.25)
            seen = Counter(await asyncio.gather(*tasks))
    assert seen.pop("1") >= BOUND
    assert sum(seen.values()) >= BOUND
    assert all("is full" in reason or "held back" in reason for reason in seen), seen
    async with AsyncClient(bounded.grpc_url, timeout=60, retries=0) as client:
        assert {await task for task in await ask(client, BOUND)} == {"1"}


def test_nothing_is_left_of_it(bounded: Project) -> None:
    assert waiting(bounded) == 0
    assert "cannot read how many requests wait" not in Layout(bounded.var).server_log.read_text()
