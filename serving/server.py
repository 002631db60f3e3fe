"""Start, watch and stop the embedded server of one `VAR`."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from tritonclient.utils import InferenceServerException

from . import process_tree
from .admin import admin_client, ensure_key
from .channel import connect
from .embedded import EXIT_TIMEOUT_SECONDS, Endpoints, Installation, assemble_backends, check_machine, server_command
from .engine_variants import take_out_misfits
from .errors import PreflightError, PublishError, ServerError
from .feedback_model import MODEL, is_staged
from .files import write_atomically
from .layout import Layout
from .line_journal import now
from .live_repository import LiveRepository
from .lock_file import open_to_lock
from .steps.limits import METRICS_VARIABLE

MENDING_SECONDS = 10.0
"""So long `make stop` and `make follow` wait for whoever is at work: the watcher mends most faults in half of it."""
FAILURE_SIGNS = ("error:", "failed to load", "unrecognized option", "Signal (")
"""What a line of the server's log holds that tells of a failure and does not begin with E."""
HARMLESS = (
    *("NVML", "CudaDriverHelper", "DCGM", "CUDA driver version", "pinned"),  # said where there is no GPU
    "model_config_content_name_ is empty",  # said around publishes
)
"""What a line of it holds that looks like a failure and is none."""
KEPT_LOGS = 5
"""Of the servers before this one, `triton.log.1` the youngest: what ended one is still there after further starts."""
CRIPPLED_DRAIN_SECONDS = 3.0
"""A server whose stub was killed waits for it until its exit time-out; what other stubs still answer takes far less."""

logger = logging.getLogger(__name__)


class ServerState(BaseModel):
    """What is written down of a started server.

    Attributes:
        pid: of tritonserver, which leads a process group of its own.
        identity: of that process, see `process_tree.identity`: it tells a reused pid from ours.
        started: ISO 8601 in UTC.
        endpoints: where it listens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    identity: str
    started: str
    endpoints: Endpoints


class Server:
    """The one server that serves a `VAR`'s live repository."""

    def __init__(self, layout: Layout) -> None:
        """Take the paths; nothing is started."""
        self.layout = layout

    @contextlib.contextmanager
    def lock(self, *, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold off every other command that starts, stops or publishes here; a dead holder's lock is gone with it.

        Args:
            patience_seconds: how long to wait for another holder.

        Raises:
            PreflightError: its file cannot be written.
            ServerError: another command holds it.
        """
        deadline = time.monotonic() + patience_seconds
        with open_to_lock(self.layout.lock) as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ServerError(
                            f"another deploy or stop is at work in {self.layout.var}, or the watcher mends the server; "
                            "wait until it is done"
                        ) from None
                time.sleep(0.05)
            yield

    def state(self) -> ServerState | None:
        """The running server's state, or None if none runs."""
        state = self.remembered()
        return state if state is not None and process_tree.identity(state.pid) == state.identity else None

    def remembered(self) -> ServerState | None:
        """What is written down of the server that was started last, also if it died since; None if it was stopped."""
        return _read_state(self.layout.server_state)

    def last_endpoints(self) -> Endpoints:
        """Where the server of this `VAR` listens, or listened last, also if it was stopped since."""
        known = self.remembered() or _read_state(self.layout.stopped_server_state)
        return known.endpoints if known is not None else Endpoints()

    def wanted_endpoints(self, told: Mapping[str, Any]) -> Endpoints:
        """Where it listens or listened last, but for what is told.

        Args:
            told: those of the endpoints that are given; None stands for one that is not.
        """
        given = {name: value for name, value in told.items() if value is not None}
        return Endpoints.model_validate(self.last_endpoints().model_dump() | given)

    def require_state(self) -> ServerState:
        """The running server's state.

        Raises:
            ServerError: no server runs; the message says what starts one.
        """
        state = self.state()
        if state is None:
            verb = "start" if LiveRepository(self.layout.live).domains() else "deploy"
            raise ServerError(f"no server runs for {self.layout.var}; run `make {verb}`")
        return state

    def start(self, endpoints: Endpoints, domains: list[str]) -> ServerState:
        """Start the server in a process group of its own; it outlives this command.

        What a killed server left behind is swept away first. It takes feedback if the live repository holds that model.
        Engines of whichever domain that do not belong on this machine any more are taken out, which is logged.

        Raises:
            PreflightError: the machine lacks something; said before anything is started.
            PublishError: the live repository cannot be written.
        """
        installation = Installation.find()
        process_tree.sweep(self.layout.shared_memory_prefix)
        check_machine(endpoints)
        key = ensure_key(self.layout)
        for line in take_out_misfits(LiveRepository(self.layout.live)):
            logger.warning("%s", line)
        assemble_backends(installation, self.layout.backends)
        models = [*domains, MODEL] if is_staged(self.layout) else domains
        log = self.layout.server_log
        log.parent.mkdir(parents=True, exist_ok=True)
        logs = [log, *(log.with_suffix(f".log.{number}") for number in range(1, KEPT_LOGS + 1))]
        for newer, older in reversed(list(itertools.pairwise(logs))):
            if newer.exists():
                newer.replace(older)
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - every part of the command is ours
                server_command(installation, self.layout, endpoints, models, key),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=installation.environment() | {METRICS_VARIABLE: endpoints.metrics_address},
                cwd=self.layout.var,
                start_new_session=True,
            )
        state = ServerState(
            pid=process.pid,
            identity=process_tree.identity(process.pid) or "ended at once",
            started=now(),
            endpoints=endpoints,
        )
        self._write_state(state)
        return state

    def undo_start(self, before: ServerState | None) -> None:
        """Stop a server that was started in vain.

        A watcher goes on to mend the server of before, if that one died and was not stopped.

        Args:
            before: what was `remembered` before the start.

        Raises:
            ServerError: a process cannot be killed.
        """
        self.stop(drain_seconds=1, forget=False)
        if before is None:  # where it was tried is not where one is to be started again
            self.layout.server_state.unlink(missing_ok=True)
        elif before != self.remembered():
            with contextlib.suppress(PreflightError):  # on a full disk the watcher starts it where it was tried last
                self._write_state(before)

    def _write_state(self, state: ServerState) -> None:
        """Write down what was started; where the disk is full, over what was written of the server before.

        Raises:
            PreflightError: it cannot be written, so the server was killed again: nobody would know of it.
        """
        path, content = self.layout.server_state, state.model_dump_json(indent=1).encode() + b"\n"
        try:
            write_atomically(path, content)
        except OSError as full:
            try:
                with path.open("r+b") as stream:
                    # In one piece: cut off between the two, what truncate would take away is no JSON.
                    stream.write(content.ljust(path.stat().st_size))
            except OSError:
                process_tree.sweep(self.layout.shared_memory_prefix)
                raise PreflightError(f"cannot write {path}: {full.strerror or full}") from None

    def wait_until_up(self, state: ServerState, *, timeout_seconds: float = 60.0) -> None:
        """Wait while a server is still starting, as when the command that started it was killed; or until it ended.

        Raises:
            ServerError: it runs and does not even say that it lives.
        """
        deadline = time.monotonic() + timeout_seconds
        with connect(state.endpoints.grpc_url) as client:
            while self.state() is not None:
                with contextlib.suppress(InferenceServerException):
                    if client.is_server_live(client_timeout=5):
                        return
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the server runs but does not answer: {self.first_error()}; run `make stop start`"
                    )
                time.sleep(0.1)

    def wait_until_ready(self, state: ServerState, domains: list[str], *, timeout_seconds: float = 120.0) -> None:
        """Wait until the server says that its ensembles are ready, their warm-up included.

        Raises:
            ServerError: it ended or took too long; the message carries the log's first error.
        """
        deadline = time.monotonic() + timeout_seconds
        with connect(state.endpoints.grpc_url) as client:
            while time.monotonic() < deadline:
                self._reap(state.pid)
                if self.state() is None:
                    raise ServerError(
                        f"tritonserver ended while it started: {self.first_error()} (log: {self.layout.server_log})"
                    )
                with contextlib.suppress(InferenceServerException):
                    if all(client.is_model_ready(domain, client_timeout=5) for domain in domains):
                        return
                time.sleep(0.1)
        raise ServerError(
            f"{', '.join(domains)} not ready within {timeout_seconds:.0f} s: {self.first_error()} "
            f"(log: {self.layout.server_log})"
        )

    def ended(self, state: ServerState, *, since: int) -> str | None:
        """Why the server answers nobody any more, once something has failed on it; None if it lives.

        Args:
            state: of the server that was asked.
            since: as for `first_error`.
        """
        try:
            self.wait_until_up(state, timeout_seconds=10.0)  # one that is about to end is still there for a moment
        except ServerError as error:
            return error.message
        return f"tritonserver ended: {self.first_error(since=since)}" if self.state() is None else None

    def stop(self, *, drain_seconds: float = EXIT_TIMEOUT_SECONDS + 5, forget: bool = True) -> str:
        """Stop the server: requests in flight are answered, then nothing of it is left.

        Args:
            drain_seconds: how long to wait before the server is killed.
            forget: whether it was meant to stop, so that the watcher goes too; where it listened is kept.

        Returns:
            What was done, in words.

        Raises:
            ServerError: a process cannot be killed.
        """
        prefix = self.layout.shared_memory_prefix
        state = self.state()
        was_running = state is not None
        if state is not None:
            if process_tree.has_dead_children(state.pid):
                drain_seconds = min(drain_seconds, CRIPPLED_DRAIN_SECONDS)
            else:
                self._drain(state, drain_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM)
            deadline = time.monotonic() + drain_seconds
            while self.state() is not None and time.monotonic() < deadline:
                self._reap(state.pid)
                time.sleep(0.05)
        killed, regions = process_tree.sweep(prefix)
        stubborn = process_tree.family(state.pid) if state is not None and self.state() is not None else []
        killed += len(stubborn)  # one that was started under another path of VAR has another prefix
        left = process_tree.kill(stubborn)
        self._reap(state.pid if state else None)
        if left := [*left, *process_tree.processes(prefix)]:
            raise ServerError(f"process {left[0].pid} cannot be killed; the machine may need a restart")
        if forget:
            with contextlib.suppress(FileNotFoundError):
                self.layout.server_state.replace(self.layout.stopped_server_state)
        leftovers = (
            f"; swept away {killed} process(es) and {regions} shared memory region(s)" if killed or regions else ""
        )
        return ("stopped" if was_running else "no server was running") + leftovers

    def _drain(self, state: ServerState, seconds: float) -> None:
        """Unload the ensembles and the feedback model, and wait until their last request is answered.

        On SIGTERM alone, Triton 2.51 closes every step that is idle at that moment, and a request that is still on its
        way to one fails.
        """
        deadline = time.monotonic() + seconds
        with (
            # A damaged live repository or key must not keep anyone from stopping the server.
            contextlib.suppress(InferenceServerException, PublishError, ServerError),
            admin_client(self.layout, state.endpoints.grpc_url) as client,
        ):
            models = {*LiveRepository(self.layout.live).ensembles(), MODEL}
            for model in models:
                client.unload_model(model, client_timeout=5)
            while time.monotonic() < deadline:
                index = client.get_model_repository_index(client_timeout=5).models
                if not any(model.name in models and model.state in {"READY", "UNLOADING"} for model in index):
                    return
                time.sleep(0.05)

    @staticmethod
    def _reap(pid: int | None) -> None:
        """Collect the exit status if the server is this process's own child, or it would stay a zombie."""
        if pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def log_size(self) -> int:
        """How many bytes the log has now, for `first_error`."""
        try:
            return self.layout.server_log.stat().st_size
        except FileNotFoundError:
            return 0

    def first_error(self, *, since: int = 0) -> str:
        """The log's first line that tells of a failure, without its time stamp; its last line where none does.

        Args:
            since: bytes of the log to pass over: what it held before.
        """
        if not self.layout.server_log.is_file():
            return "there is no log"
        lines = self._logged(since)
        return next(iter(_failures(lines)), lines[-1].split("] ", 1)[-1].strip()[:500] if lines else "the log is empty")

    def last_error(self) -> str | None:
        """The log's last line that tells of a failure, without its time stamp; None where none does."""
        failures = _failures(self._logged(0))
        return failures[-1] if failures else None

    def _logged(self, since: int) -> list[str]:
        try:
            content = self.layout.server_log.read_bytes()[since:]
        except FileNotFoundError:
            return []
        return [line for line in content.decode("utf-8", errors="replace").splitlines() if line.strip()]


def _failures(lines: Sequence[str]) -> list[str]:
    """What the lines of a log say that tell of a failure, without time stamps."""
    found = [
        line
        for line in lines
        if (line.startswith("E") or any(sign in line for sign in FAILURE_SIGNS))
        and not any(word in line for word in HARMLESS)
    ]
    return [line.split("] ", 1)[-1].strip().strip('"')[:500] for line in found]


def _read_state(path: Path) -> ServerState | None:
    try:
        return ServerState.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except PermissionError:
        raise ServerError(f"{path} is another user's, and cannot be read: run this as that user") from None


def tail(path: Path, lines: int) -> str:
    """The last lines of a log.

    Raises:
        ServerError: there is no log.
    """
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        raise ServerError(f"there is no log at {path}; run `make deploy` first") from None
