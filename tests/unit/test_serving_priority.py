"""What prepares a release stands back, and is brought forward again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving import priority
from serving.priority import bring_forward, children, new_children_stand_back, standing_back

PARENT = """
import subprocess, sys
for _ in sys.stdin:
    subprocess.Popen(["sleep", "60"])
    print(flush=True)
"""


def niceness(process: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, process)


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[str]"]:
    """A process that starts a child for each line it is given."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def start_child(parent: "subprocess.Popen[str]") -> int:
    assert parent.stdin is not None
    assert parent.stdout is not None
    before = children(parent.pid)
    parent.stdin.write("\n")
    parent.stdin.flush()
    parent.stdout.readline()
    [child] = children(parent.pid) - before
    return child


def wait_for(process: int, expected: int) -> None:
    deadline = time.monotonic() + 10
    while niceness(process) != expected:
        assert time.monotonic() < deadline, niceness(process)
        time.sleep(0.01)


def test_only_the_thread_that_works_stands_back():
    before = niceness(0)
    assert standing_back(lambda: niceness(0)) == max(before, priority.LOW)
    assert niceness(0) == before
    with pytest.raises(ZeroDivisionError):
        standing_back(lambda: 1 / 0)


@pytest.mark.skipif(not priority._may_bring_forward(), reason="needs the right to lower niceness")
def test_what_a_server_starts_stands_back_until_it_is_loaded(parent):
    usual = niceness(0)
    there = start_child(parent)
    with pytest.raises(ZeroDivisionError), new_children_stand_back(parent.pid):
        child = start_child(parent)
        wait_for(child, usual + priority.LOW)
        assert niceness(there) == usual
        raise ZeroDivisionError
    assert niceness(child) == usual

    os.setpriority(os.PRIO_PROCESS, child, usual + priority.LOW)  # as a publisher leaves it that is killed
    bring_forward(parent.pid)
    assert (niceness(child), niceness(there)) == (usual, usual)


def test_nothing_stands_back_that_could_not_be_brought_forward(parent, monkeypatch):
    monkeypatch.setattr(priority, "_may_bring_forward", lambda: False)
    with new_children_stand_back(parent.pid):
        child = start_child(parent)
        time.sleep(3 * priority.LOOK_SECONDS)
        assert niceness(child) == niceness(0)


def test_a_server_that_has_ended_is_left_alone():
    bring_forward(2**22 + 1)
    with new_children_stand_back(2**22 + 1):
        assert children(2**22 + 1) == set()
