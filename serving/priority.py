"""Prepare a release without taking the cores from those who are being answered: what is not live yet stands back.

Linux counts niceness by thread, and whoever has lowered it may not raise it again without the right to (CAP_SYS_NICE,
or a soft limit as in `ulimit -e 20`). So the publisher's own work runs in a thread that ends with it; new stubs, which
are to answer at full priority once they are loaded, stand back only where they can be brought forward again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

LOW = 10
"""The niceness of what prepares: about a tenth of the share of a busy core that what answers gets."""
LOOK_SECONDS = 0.02


def standing_back(work: Callable[[], Result]) -> Result:
    """Do some work at low priority, and return what it returns or raise what it raises."""
    with ThreadPoolExecutor(1, initializer=_set_priority, initargs=(0, LOW)) as pool:
        return pool.submit(work).result()


@contextlib.contextmanager
def new_children_stand_back(parent: int) -> Iterator[None]:
    """Run at low priority what a process starts meanwhile, and bring it forward at the end; else change nothing."""
    if not _may_bring_forward():
        yield
        return
    known, done = children(parent), threading.Event()
    low = _priority(parent) + LOW

    def look() -> None:
        seen = set(known)
        while not done.wait(LOOK_SECONDS):
            for child in children(parent) - seen:
                _set_priority(child, low)
                seen.add(child)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()
        bring_forward(parent, but=known)


def bring_forward(parent: int, *, but: set[int] | frozenset[int] = frozenset()) -> None:
    """Give what a process has started its own priority again, all threads of it, as far as that is allowed."""
    for process in children(parent) - but:
        with contextlib.suppress(OSError):
            usual = _priority(parent)
            for thread in Path(f"/proc/{process}/task").iterdir():
                _set_priority(int(thread.name), usual)


def children(parent: int) -> set[int]:
    """The processes that a process has started."""
    found: set[int] = set()
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text(encoding="ascii").split()))
    return found


def _priority(process: int) -> int:
    """A process's niceness; that of this thread where it has ended."""
    try:
        return os.getpriority(os.PRIO_PROCESS, process)
    except OSError:
        return os.getpriority(os.PRIO_PROCESS, 0)


def _set_priority(thread: int, niceness: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or that is not allowed: then it runs as anything else
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _may_bring_forward() -> bool:
    """Whether niceness can be lowered again, tried in a thread of no importance."""

    def attempt() -> bool:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, before + 1)
            os.setpriority(os.PRIO_PROCESS, 0, before)
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(attempt).result()
