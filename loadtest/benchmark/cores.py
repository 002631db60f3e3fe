"""One core for what is measured, the others for who asks: without it, the two would fight and the ratio be theirs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from loadtest.errors import LoadTestError


@dataclass(frozen=True)
class Cores:
    """How the machine is shared out.

    Attributes:
        measured: the core of the server, and of the bare encoder in its turn.
        asking: the cores of the load.
    """

    measured: int
    asking: frozenset[int]

    @classmethod
    def here(cls) -> Cores:
        """The last core is measured.

        Raises:
            LoadTestError: there is one core only.
        """
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise LoadTestError("a benchmark needs two cores: one for the server and one for the load")
        return cls(cores[-1], frozenset(cores[:-1]))

    @contextlib.contextmanager
    def working_on(self, cores: frozenset[int], process: int | None = None) -> Iterator[None]:
        """Keep a process, this one where None, to some cores for a while."""
        pid = process or os.getpid()
        before = frozenset(os.sched_getaffinity(pid))
        try:
            pin(pid, cores)
            yield
        finally:
            pin(pid, before)


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keep a process and all that it started, every thread of them, to some cores."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, cores)


def listener(port: int) -> int:
    """The process that listens on a port of this machine.

    Raises:
        LoadTestError: none of ours does.
    """
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
        if listens and connection.pid:
            return int(connection.pid)
    raise LoadTestError(f"nothing of ours listens on port {port}: run `make deploy`, and measure on the same machine")
