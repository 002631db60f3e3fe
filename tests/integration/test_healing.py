"""What breaks is mended within seconds, without anybody: a dead stub, a hung one, a dead server."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from instructrec_client import Client, InstructRecError
from project import Project, copy_of

from serving import process_tree, watcher
from serving.layout import Layout


@pytest.fixture(scope="module")
def watched(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A server with a watcher; the last test stops it."""
    project = replace(copy_of(small, tmp_path_factory.mktemp("watched") / "var"), watch="yes")
    project.make("deploy")
    yield project
    project.make("stop", check=False)


def process_of(project: Project, part: str) -> psutil.Process:
    tree = process_tree.processes(Layout(project.var).shared_memory_prefix)
    return next(one for one in tree if part in " ".join(one.cmdline()[:2]))


def seconds_until_answered(project: Project, seen: Counter[str], *, at_most: float = 60.0) -> float:
    """Ask until five answers came in a row, counting what failed before."""
    began, row = time.monotonic(), 0
    while row < 5:
        try:
            with Client(project.grpc_url, retries=0, timeout=2.0) as client:
                client.recommend("a blue shirt", k=3)
        except InstructRecError:
            seen["failed"] += 1
            row = 0
            assert time.monotonic() - began < at_most, (Layout(project.var).watcher_log).read_text()
            time.sleep(0.1)
        else:
            row += 1
    return time.monotonic() - began


def wait_until(so: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("victim", "signal", "reason"),
    [
        ("ecommerce_topk/", "kill", "ecommerce_topk version 1 is dead"),
        ("ecommerce_encoder/", "suspend", "ecommerce_encoder version 1 hangs"),
        ("live/feedback/", "kill", "feedback version 1 is dead"),
        ("tritonserver", "kill", "tritonserver is gone"),
    ],
)
def test_what_breaks_is_mended(watched: Project, victim: str, signal: str, reason: str, record_property: Any) -> None:
    process = process_of(watched, victim)
    getattr(process, signal)()
    seen = Counter[str]()
    record_property("seconds", seconds_until_answered(watched, seen))
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    log = Layout(watched.var).watcher_log
    # It is written when the reload is done, and the first answer may come before.
    wait_until(lambda: reason in log.read_text())
    assert "mends what breaks" in watched.make("status").stdout


def test_a_server_that_was_stopped_stays_stopped_and_the_watcher_goes(watched: Project) -> None:
    watched.make("deploy")
    layout = Layout(watched.var)
    wait_until(lambda: watcher.is_watching(layout))
    watched.make("stop")
    wait_until(lambda: not watcher.is_watching(layout))
    assert process_tree.processes(layout.shared_memory_prefix) == []
