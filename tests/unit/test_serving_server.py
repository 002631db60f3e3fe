"""The server's bookkeeping with real processes: whose pid is it, who holds the lock, what is swept away."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from live_repository_helpers import full
from serving_helpers import ROOT

from serving import process_tree
from serving.__main__ import main
from serving.embedded import Endpoints
from serving.errors import PreflightError, ServerError
from serving.layout import Layout
from serving.server import Server, ServerState, tail


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "var")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start real processes and end what is left of them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **options: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, **options))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def remember(layout: Layout, pid: int, *, identity: str | None = None) -> ServerState:
    """Write down a process as the server, as `start` does."""
    state = ServerState(
        pid=pid,
        identity=identity or process_tree.identity(pid) or "gone",
        started="2026-01-01T00:00:00+00:00",
        endpoints=Endpoints(),
    )
    layout.var.mkdir(parents=True, exist_ok=True)
    layout.server_state.write_text(state.model_dump_json())
    return state


STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def start_stubborn(start: Callable[..., subprocess.Popen[bytes]], name: str, prefix: str) -> subprocess.Popen[bytes]:
    """A process that calls itself `name`, carries the prefix on its command line and is deaf to SIGTERM."""
    bash = shutil.which("bash")
    process = start(name, "-c", STUBBORN, "argument", f"--x={prefix}", executable=bash, stdout=subprocess.PIPE)  # type: ignore[arg-type]
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_nothing_runs_where_nothing_was_started(layout):
    assert Server(layout).state() is None


def test_a_running_process_is_recognised(layout, start):
    state = remember(layout, start("sleep", "60").pid)
    assert Server(layout).state() == state


def test_a_dead_process_is_not_running(layout, start):
    process = start("sleep", "60")
    remember(layout, process.pid)
    process.kill()
    process.wait()
    assert Server(layout).state() is None


def test_a_process_that_ended_and_was_not_collected_is_not_running(layout, start):
    process = start("sleep", "60")
    remember(layout, process.pid)
    process.kill()
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Server(layout).state() is None


def test_a_pid_that_another_process_got_is_not_ours(layout, start):
    process = start("sleep", "60")
    remember(layout, process.pid, identity="another boot/1")
    assert Server(layout).state() is None
    assert Server(layout).stop() == "no server was running"
    assert process.poll() is None  # and it is left alone


def test_a_corrected_clock_does_not_lose_the_server(layout, start, tmp_path, monkeypatch):
    """The kernel's boot time moves with the clock (`btime` in /proc/stat); lost, the server would be swept away."""
    process = start("sleep", "60")
    state = remember(layout, process.pid)
    kernel = tmp_path / "proc"
    kernel.mkdir()
    (kernel / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    lines = Path("/proc/stat").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + 1}" if line.startswith("btime") else line for line in lines]
    (kernel / "stat").write_text("\n".join(moved) + "\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(kernel))
    assert Server(layout).state() == state


@pytest.mark.parametrize("content", ["", "{", "{}", '{"pid": "x"}'])
def test_a_damaged_state_file_is_no_server(layout, content):
    layout.var.mkdir()
    layout.server_state.write_text(content)
    assert Server(layout).state() is None


def test_stop_with_nothing_running_says_so(layout):
    assert Server(layout).stop() == "no server was running"
    layout.var.mkdir()
    layout.server_state.write_text("{}")
    assert Server(layout).stop() == "no server was running"
    assert not layout.server_state.exists()


def test_stop_ends_the_server_and_forgets_it(layout, start):
    process = start("sleep", "60")
    remember(layout, process.pid)
    assert Server(layout).stop(drain_seconds=5) == "stopped"
    assert not psutil.pid_exists(process.pid)
    assert not layout.server_state.exists()


def test_stop_kills_what_does_not_end(layout, start):
    server = start_stubborn(start, "/opt/tritonserver", layout.shared_memory_prefix)
    stub = start_stubborn(start, "/opt/triton_python_backend_stub", layout.shared_memory_prefix)
    remember(layout, server.pid)
    told = Server(layout).stop(drain_seconds=0.3)
    assert told == "stopped; swept away 2 process(es) and 0 shared memory region(s)"
    assert not psutil.pid_exists(server.pid)
    assert stub.wait(60) == -signal.SIGKILL


def test_stop_kills_also_a_server_that_was_started_under_another_path(layout, start):
    server = start_stubborn(start, "/opt/tritonserver", f"instructrec_{uuid.uuid4().hex[:12]}_")
    remember(layout, server.pid)
    assert Server(layout).stop(drain_seconds=0.3).startswith("stopped; swept away")
    assert not psutil.pid_exists(server.pid)


def test_sweep_takes_our_processes_and_regions_and_no_others(layout, start):
    ours, other = layout.shared_memory_prefix, f"instructrec_{uuid.uuid4().hex[:12]}_"
    stub = start_stubborn(start, "triton_python_backend_stub", ours)
    neighbour = start_stubborn(start, "triton_python_backend_stub", other)
    stranger = start_stubborn(start, "editor", ours)
    regions = [process_tree.SHARED_MEMORY / f"{prefix}region_0" for prefix in (ours, other)]
    try:
        for region in regions:
            region.write_bytes(b"x")
        assert [process.pid for process in process_tree.processes(ours)] == [stub.pid]
        assert process_tree.proportional_memory_bytes(process_tree.processes(ours)) > 0
        assert Server(layout).stop() == "no server was running; swept away 1 process(es) and 1 shared memory region(s)"
        assert [region.exists() for region in regions] == [False, True]
        assert stub.wait(60) == -signal.SIGKILL
        assert neighbour.poll() is None
        assert stranger.poll() is None
        assert process_tree.sweep(ours) == (0, 0)
    finally:
        for region in regions:
            region.unlink(missing_ok=True)


def test_a_dead_child_is_seen(start):
    parent = start("bash", "-c", "sleep 0.01 & exec sleep 60")
    deadline = time.monotonic() + 60
    while not process_tree.has_dead_children(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process_tree.has_dead_children(parent.pid)
    assert not process_tree.has_dead_children(start("sleep", "60").pid)
    assert not process_tree.has_dead_children(2**22 - 1)


HOLD = """
import sys
from pathlib import Path
from serving.layout import Layout
from serving.server import Server
with Server(Layout(Path(sys.argv[1]))).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_keeps_a_second_process_out_and_dies_with_its_holder(layout):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(layout.var)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ServerError, match="another deploy or stop"), Server(layout).lock():
            pytest.fail("two hold the lock")
    finally:
        holder.kill()
        holder.communicate()
    with Server(layout).lock(), pytest.raises(ServerError), Server(layout).lock():
        pytest.fail("two hold the lock")
    with Server(layout).lock():
        pass


def test_a_stop_waits_for_the_watcher_to_finish_mending(layout):
    mending, mended = threading.Event(), []

    def mend() -> None:
        with Server(layout).lock():
            mending.set()
            time.sleep(0.5)
            mended.append(True)

    watcher = threading.Thread(target=mend)
    watcher.start()
    assert mending.wait(timeout=30)
    with pytest.raises(ServerError, match="or the watcher mends the server"), Server(layout).lock(patience_seconds=0.1):
        pytest.fail("two hold the lock")
    with Server(layout).lock(patience_seconds=30):
        assert mended
    watcher.join()


def test_the_lock_is_not_handed_down_to_what_is_started_under_it(layout, start):
    with Server(layout).lock():
        start("sleep", "60")
    with Server(layout).lock():
        pass


def locked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is there can be opened for writing, as in a `VAR` of another user; root can open anything."""
    real = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("verb", ["stop", "start", "rollback", "watch"])
@pytest.mark.parametrize("made", [True, False])
def test_a_var_of_another_user_is_one_line_that_names_the_user(layout, monkeypatch, verb, made):
    owner = pwd.getpwuid(os.geteuid()).pw_name
    layout.var.mkdir()
    lock = layout.watcher_lock if verb == "watch" else layout.lock
    if made:
        lock.touch()
    locked_out(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    done = CliRunner().invoke(main, [verb, "--var", str(layout.var)])
    assert (done.exit_code, done.output) == (
        1,
        f"Error: cannot write {lock}: Permission denied; {lock if made else layout.var} belongs to the user {owner}: "
        "run this as that user\n",
    )


def test_a_lock_that_its_own_user_cannot_write_is_told(layout, monkeypatch):
    locked_out(monkeypatch)
    with pytest.raises(PreflightError, match="change its rights"), Server(layout).lock():
        pytest.fail("held a lock that cannot be opened")
    layout.var.rmdir()
    layout.var.touch()
    with pytest.raises(PreflightError, match=r"cannot write .*: File exists"), Server(layout).lock():
        pytest.fail("held a lock that cannot be opened")


INFO = 'I1123 18:00:00.000001 7 server.cc:676] "loading: ecommerce_encoder:1"'
HARMLESS = [
    INFO,
    'W1123 18:00:00.000002 7 pinned_memory_manager.cc:271] "Unable to allocate pinned system memory"',
    'E1123 18:00:00.000003 7 metrics.cc:877] "NVML initialization failed: error: not found"',
    "| Option | Value |",
    "",
]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [
                *HARMLESS,
                "E1123 18:00:01.000000 7 model_lifecycle.cc:642] \"failed to load 'a': Internal: [1] is bad\"",
                'E1123 18:00:02.000000 7 model_repository_manager.cc:703] "Invalid argument: second"',
                "error: creating server: Internal - failed to load all models",
            ],
            "failed to load 'a': Internal: [1] is bad",
        ),
        ([*HARMLESS, "error: creating server: Internal - x"], "error: creating server: Internal - x"),
        (
            ["/opt/tritonserver: unrecognized option '--nope'", "Usage: tritonserver [options]"],
            "/opt/tritonserver: unrecognized option '--nope'",
        ),
        ([INFO, "Signal (11) received."], "Signal (11) received."),
        ([INFO, "Signal (11) received.", "", "  "], "Signal (11) received."),
        ([], "the log is empty"),
    ],
)
def test_the_first_error_of_a_log(layout, lines, expected):
    layout.server_log.parent.mkdir(parents=True)
    layout.server_log.write_text("\n".join(lines), encoding="utf-8")
    assert Server(layout).first_error() == expected


def test_what_triton_says_around_every_publish_is_no_reason_of_a_crash(layout):
    said = '"Failed to set config modification time: model_config_content_name_ is empty"'
    lines = ["E1123 18:00:01.000000 7 model_lifecycle.cc:642] \"failed to load 'a'\"", INFO]
    published = f"E1123 18:00:03.000000 7 model_repository_manager.cc:470] {said}"
    layout.server_log.parent.mkdir(parents=True)
    layout.server_log.write_text("\n".join([INFO, published]), encoding="utf-8")
    assert Server(layout).last_error() is None
    layout.server_log.write_text("\n".join([*lines, published, "Signal (11) received.", INFO]), encoding="utf-8")
    assert Server(layout).last_error() == "Signal (11) received."
    assert Server(layout).first_error() == "failed to load 'a'"


def test_the_first_error_is_one_short_line_whatever_the_log_holds(layout):
    assert Server(layout).first_error() == "there is no log"
    layout.server_log.parent.mkdir(parents=True)
    layout.server_log.write_bytes(b"E1123 x.cc:1] \xff" + b"y" * 5_000 + b"\n")
    assert len(Server(layout).first_error()) <= 500


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start runs another program than tritonserver."""
    for name in ("assemble_backends", "check_machine"):
        monkeypatch.setattr(f"serving.server.{name}", lambda *_: None)
    monkeypatch.setattr("serving.server.server_command", lambda *_: ["echo"])


@pytest.mark.usefixtures("echoing")
@pytest.mark.parametrize("before", [b"", b" " * 5_000 + b"}"])
def test_on_a_full_disk_the_state_is_written_over_the_one_before(layout, monkeypatch, before):
    layout.var.mkdir()
    layout.server_state.write_bytes(before)
    monkeypatch.setattr("serving.server.write_atomically", full)
    state = Server(layout).start(Endpoints(grpc_port=7001), [])
    assert Server(layout).remembered() == state
    assert layout.server_state.stat().st_size >= len(before), "written in one piece, and nothing cut off after it"


@pytest.mark.usefixtures("echoing")
def test_the_logs_of_the_servers_before_are_kept(layout, monkeypatch):
    starts = iter(range(8))
    monkeypatch.setattr("serving.server.server_command", lambda *_: ["echo", f"start {next(starts)}"])
    for _ in range(8):
        state = Server(layout).start(Endpoints(), [])
        psutil.wait_procs([psutil.Process(state.pid)] if psutil.pid_exists(state.pid) else [])
    logs = [layout.server_log, *(layout.server_log.with_suffix(f".log.{number}") for number in range(1, 6))]
    assert [log.read_text() for log in logs] == [f"start {number}\n" for number in range(7, 1, -1)]
    assert len(list(layout.server_log.parent.iterdir())) == len(logs)


def test_tail(layout):
    with pytest.raises(ServerError, match="no log"):
        tail(layout.server_log, 2)
    layout.server_log.parent.mkdir(parents=True)
    layout.server_log.write_bytes(b"one\ntwo\nthr\xffee\n")
    assert tail(layout.server_log, 2) == "two\nthr\N{REPLACEMENT CHARACTER}ee"
