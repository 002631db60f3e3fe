"""Find and end the processes and shared memory of one server, also after it was killed.

Every Python stub carries the name of its shared memory region on its command line, and every region starts with the
server's prefix; so ours are told apart from any other server's, and from a process that got a dead one's number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's folder of POSIX shared memory


def processes(prefix: str) -> list[psutil.Process]:
    """The running server and stubs whose command line holds a shared memory prefix."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        executable = Path(command[0]).name if command else ""
        if executable in {"tritonserver", "triton_python_backend_stub"} and any(prefix in part for part in command):
            found.append(process)
    return found


def identity(pid: int) -> str | None:
    """What tells a process from a later one of the same number: the boot it lives in and the clock tick it started at.

    Unlike a start time, neither moves when the machine's clock is corrected. None if there is no such process, or only
    its exit status.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # Fields 3 and 22 of proc_pid_stat(5): the name, in brackets, and all before it are cut off.
    state, start_tick = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_tick}"


def proportional_memory_bytes(tree: Iterable[psutil.Process]) -> int:
    """The processes' proportional set size (PSS): shared pages count once."""
    total = 0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def kill(tree: Iterable[psutil.Process], *, timeout_seconds: float = 10.0) -> list[psutil.Process]:
    """Kill processes and wait until they are gone.

    Returns:
        Those that are still there, which only a hung kernel call explains.
    """
    waiting = list(tree)
    for process in waiting:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        waiting = [process for process in waiting if _alive(process)]
        if not waiting:
            break
        time.sleep(0.02)
    return waiting


def family(pid: int) -> list[psutil.Process]:
    """A process and those that it started, directly or not; none if there is no such process."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def has_dead_children(pid: int) -> bool:
    """Whether a server has lost a stub: Triton notices neither that nor collects the exit status."""
    try:
        return any(not _alive(child) for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


def shared_memory_regions(prefix: str) -> list[Path]:
    """The shared memory regions whose name starts with a prefix."""
    return sorted(SHARED_MEMORY.glob(f"{prefix}*"))


def sweep(prefix: str) -> tuple[int, int]:
    """Kill what is left of a server and free its shared memory.

    Returns:
        How many processes were killed and how many regions removed.
    """
    tree = processes(prefix)
    kill(tree)
    regions = shared_memory_regions(prefix)
    for region in regions:
        region.unlink(missing_ok=True)
    return len(tree), len(regions)
