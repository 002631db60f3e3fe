"""Load from a number of users who each wait for their answer before they ask again.

Locust runs in a process of its own: it patches the standard library for gevent, which asyncio, and with it the open
loop, does not survive.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.errors import LoadTestError
from loadtest.summary import Summary

__all__ = ["HTML_FILE", "SUMMARY_FILE", "ClosedLoop", "run_closed_loop"]

SUMMARY_FILE = "closed_loop.json"
HTML_FILE = "report.html"
START_AND_STOP_S = 60.0
"""Seconds that Locust may take beyond the load: to start, to wait for the last answers and to write its report."""


class ClosedLoop(BaseModel):
    """One closed-loop run.

    Attributes:
        url: The server's gRPC endpoint.
        domain: The domain to ask.
        instructions: The file that `loadtest.workload.read_workload` reads.
        k: How many items to ask for.
        users: Users at once, each with a connection of its own; a run in which fewer ask is an error, not a result.
        spawn_rate: Users started a second.
        duration_s: Seconds of load once all users have started; what was asked before is not counted.
        deadline_s: Seconds that a request may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    domain: str
    instructions: Path
    k: int
    users: int
    spawn_rate: float
    duration_s: float
    deadline_s: float

    @property
    def ramp_up_s(self) -> float:
        """Seconds in which the users start, one after another."""
        return self.users / self.spawn_rate


def run_closed_loop(settings: ClosedLoop, folder: Path, progress: Callable[[float], None]) -> Summary:
    """Apply the load and return what was measured; Locust's HTML report is left in the folder as `report.html`.

    Args:
        settings: The load.
        folder: An existing folder.
        progress: Called with the seconds since the last call.

    Raises:
        LoadTestError: Locust failed, or not all users could start.
    """
    command = [sys.executable, "-m", "loadtest.locust_process", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        errors = _wait(process, settings, progress)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise LoadTestError(f"Locust ended with {process.returncode}: {last}")
    return Summary.model_validate_json((folder / SUMMARY_FILE).read_bytes())


def _wait(process: subprocess.Popen[str], settings: ClosedLoop, progress: Callable[[float], None]) -> str:
    """Wait for the process and return what it wrote to stderr."""
    start = last = time.monotonic()
    limit = settings.ramp_up_s + settings.duration_s + settings.deadline_s + START_AND_STOP_S
    said: str | None = settings.model_dump_json()
    while True:
        try:
            return process.communicate(input=said, timeout=0.5)[1]
        except subprocess.TimeoutExpired:
            said = None  # communicate() keeps what it has begun to send
        now = time.monotonic()
        progress(now - last)
        last = now
        if now - start > limit:
            raise LoadTestError(f"Locust did not end within {limit:g} s: is the machine overloaded?")
