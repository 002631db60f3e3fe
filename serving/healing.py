"""Find out what is wrong with a running server, and mend it: the part that Triton leaves to its operator.

Triton 2.51 never restarts a Python stub that died, and does not notice one that hangs: every request that needs it
fails or waits, while all readiness endpoints say READY. Three looks tell what happened: is the server's process there,
has each instance of a loaded step a stub that runs, and does each domain answer a real instruction. A fourth only
tells: can feedback be stored. A publish that was killed is brought to an end first.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from . import process_tree
from .admin import admin_client
from .errors import BusyError, ServerError, ServingError
from .feedback_model import is_staged, probe_feedback
from .layout import Layout
from .live_repository import LiveRepository
from .liveness import ask_domain
from .recovery import recover
from .releases import ReleaseStore
from .server import Server, ServerState
from .start import start_live

PROBE_TIMEOUT_SECONDS = 2.0
BUSY_LOOKS = 5
"""After so many looks in a row at which every probe was refused, a hundred in all, and nobody else was answered, a step
hangs: it is no overload."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class StubPlace:
    """The version of a model that a stub belongs to."""

    model: str
    version: int


@dataclass(frozen=True)
class Stubs:
    """The stubs of a server, by what they serve; each instance of a step has one.

    Attributes:
        running: how many can answer.
        stopped: processes that are there, but were stopped (SIGSTOP) and cannot answer.
    """

    running: Counter[StubPlace]
    stopped: list[tuple[StubPlace, psutil.Process]]

    def dead(self, needed: Mapping[StubPlace, int]) -> list[StubPlace]:
        """Where there are fewer than needed, those that were stopped included."""
        there = self.running + Counter(place for place, _ in self.stopped)
        return sorted(place for place, count in needed.items() if there[place] < count)


def find_stubs(layout: Layout) -> Stubs:
    """Look at the stubs of a server: each carries the path of its model on its command line."""
    running: Counter[StubPlace] = Counter()
    stopped: list[tuple[StubPlace, psutil.Process]] = []
    for process in process_tree.processes(layout.shared_memory_prefix):
        with contextlib.suppress(psutil.Error, ValueError):
            command = process.cmdline()
            if len(command) < 2 or not Path(command[1]).is_relative_to(layout.live):
                continue
            model, version = Path(command[1]).relative_to(layout.live).parts[:2]
            place = StubPlace(model, int(version))
            status = process.status()
            if status in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}:
                stopped.append((place, process))
            elif status not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
                running[place] += 1
    return Stubs(running, stopped)


def loaded_steps(client: grpc.InferenceServerClient, layout: Layout) -> dict[StubPlace, int]:
    """How many stubs should serve each version that Triton calls READY: of all models but the ensembles.

    Raises:
        InferenceServerException: the server does not answer.
    """
    ensembles = set(LiveRepository(layout.live).ensembles())
    models = client.get_model_repository_index(client_timeout=PROBE_TIMEOUT_SECONDS).models
    ready = [
        StubPlace(model.name, int(model.version))
        for model in models
        # What the live repository does not hold any more was taken out, and is about to be unloaded.
        if model.state == "READY"
        and model.name not in ensembles
        and (layout.live / model.name / model.version).is_dir()
    ]
    return {place: _instances(client, place) for place in ready}


def _instances(client: grpc.InferenceServerClient, place: StubPlace) -> int:
    """How many instances Triton made, by the config that it read: a variant of it, or one that was replaced since."""
    try:
        answer = client.get_model_config(place.model, str(place.version), client_timeout=PROBE_TIMEOUT_SECONDS)
    except InferenceServerException as error:
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            raise
        return 0  # unloaded since it was listed
    # Triton has filled in what the file leaves out: the kind, and every GPU of a group, each with so many instances.
    return sum(group.count * max(1, len(group.gpus)) for group in answer.config.instance_group) or 1


def reload_step(client: grpc.InferenceServerClient, layout: Layout, model: str, versions: Iterable[int]) -> None:
    """Give versions of a step new stubs.

    Triton reloads a version only if a file in its folder looks newer, so one of each is touched first.

    Raises:
        InferenceServerException: Triton refuses.
    """
    for version in versions:
        for path in sorted((layout.live / model / str(version)).iterdir()):
            if path.is_file():
                path.touch()
                break
    client.load_model(model, client_timeout=60)


class Healer:
    """Looks after the server of one `VAR`; `look` is called again and again."""

    def __init__(self, layout: Layout, *, patience: int = 2) -> None:
        """Take the paths.

        Args:
            layout: where everything lies.
            patience: after so many looks in a row at which a domain does not answer, though every stub runs, the server
                is restarted.
        """
        self.layout = layout
        self.server = Server(layout)
        self._patience = patience
        self._silent = self._busy = 0
        self._without_feedback = False
        self._said: dict[str, str] = {}
        self._seen: ServerState | None = None

    def look(self) -> list[str]:
        """Look once, and mend what is wrong.

        Returns:
            What was done and why, a line each, and whether feedback can be stored, when that changes; nothing if all is
            well, or another command is at work on the server.

        Raises:
            ServingError: mending failed.
        """
        state = self.server.state()
        if state is None:
            return self._restart("tritonserver is gone") if self.layout.server_state.is_file() else []
        self._seen = state
        done = self._end_killed_publishes()
        if done:
            return done
        try:
            with admin_client(self.layout, state.endpoints.grpc_url) as client:
                done += self._mend_stubs(client)
        except InferenceServerException as error:
            return self._count_silence(f"the server does not answer: {error.message()}")
        if done:
            self._silent = 0
            return done
        return self._ask_domains(state)

    def _ask_domains(self, state: ServerState) -> list[str]:
        try:
            silent = self._first_silent_domain(state)
        except BusyError as error:
            self._busy += 1
            return self._restart(error.message) if self._busy >= BUSY_LOOKS else []
        self._busy = 0
        if silent is None:
            self._silent = 0
            return self._look_at_feedback(state)
        return self._count_silence(silent)

    def _end_killed_publishes(self) -> list[str]:
        if not LiveRepository(self.layout.live).marks.all():
            return []
        with self._at_work() as allowed:  # else one is at work
            return self._recover() if allowed else []

    def _recover(self) -> list[str]:
        """What cannot be ended now, as on a full disk, must not keep anything else from being mended."""
        try:
            return recover(self.layout)
        except ServingError as error:
            logger.error("a killed publish is not ended yet: %s", error.message)
            return []

    def _mend_stubs(self, client: grpc.InferenceServerClient) -> list[str]:
        stubs = find_stubs(self.layout)
        if not stubs.dead(loaded_steps(client, self.layout)) and not stubs.stopped:
            return []
        done: list[str] = []
        with self._at_work() as allowed:
            if not allowed:
                return []
            if not process_tree.processes(self.layout.shared_memory_prefix):
                self._say_once(
                    "server",
                    f"the server was started under another path than {self.layout.var}, so that its stubs cannot be "
                    "told from others' and are left alone; run `make stop start`",
                )
                return []
            # Somebody may have loaded or unloaded a step between the two looks.
            stubs = find_stubs(self.layout)
            dead = stubs.dead(loaded_steps(client, self.layout))
            process_tree.kill(process for _, process in stubs.stopped)
            reasons = {**dict.fromkeys(dead, "is dead"), **{place: "hangs" for place, _ in stubs.stopped}}
            for model, places in itertools.groupby(sorted(reasons), key=lambda place: place.model):
                versions = [place.version for place in places]
                began = time.monotonic()
                reload_step(client, self.layout, model, versions)
                seconds = time.monotonic() - began
                done += [
                    f"a stub of {model} version {version} {reasons[StubPlace(model, version)]}: "
                    f"loaded anew in {seconds:.1f} s"
                    for version in versions
                ]
        return done

    def _first_silent_domain(self, state: ServerState) -> str | None:
        """Why the first domain that does not answer does not.

        Raises:
            BusyError: it refused every probe and answered nobody else, as a domain does whose step hangs while requests
                keep coming.
        """
        repository = LiveRepository(self.layout.live)
        for domain in repository.domains():
            live = repository.live_release(domain)
            if live is None:
                continue
            try:
                release = ReleaseStore(self.layout.releases(domain)).open(live.number)
                ask_domain(state.endpoints.grpc_url, release, timeout_seconds=PROBE_TIMEOUT_SECONDS)
            except BusyError:
                raise
            except ServerError as error:
                return error.message
            except ServingError as error:  # its files are gone from the store; that is no fault of the server
                self._say_once(domain, f"nobody can tell whether {domain} answers: {error.message}")
            else:
                self._said.pop(domain, None)
        return None

    def _say_once(self, about: str, message: str) -> None:
        if self._said.get(about) != message:
            self._said[about] = message
            logger.warning("%s", message)

    def _look_at_feedback(self, state: ServerState) -> list[str]:
        """Say when events cannot be stored, and when they can again.

        No more: the reason is mostly the store's (a full disk, a database that is down), and a new server would not
        help. A dead or hung stub is mended as any other.
        """
        trouble = ""
        if is_staged(self.layout):
            try:
                probe_feedback(state.endpoints.grpc_url, timeout_seconds=PROBE_TIMEOUT_SECONDS)
            except ServerError as error:
                trouble = error.message
        if bool(trouble) == self._without_feedback:
            return []
        self._without_feedback = bool(trouble)
        return [trouble or "feedback can be stored again"]

    def _count_silence(self, reason: str) -> list[str]:
        self._silent += 1
        if self._silent < self._patience:
            return []
        self._silent = 0
        return self._restart(reason)

    def _restart(self, reason: str) -> list[str]:
        with self._at_work() as allowed:
            if not allowed or not self.layout.server_state.is_file():
                return []
            # Where what was written down of the server is damaged, nobody but who has seen it knows where it listened.
            known = self.server.remembered() or self._seen
            endpoints = known.endpoints if known is not None else self.server.last_endpoints()
            # A start moves the log away, and each further one that fails: said now, it is not lost.
            said = self.server.last_error()
            logger.warning("%s%s", reason, f"; the server's log says: {said}" if said else "")
            began = time.monotonic()
            self._busy = 0
            self.server.stop(drain_seconds=1, forget=False)  # should the start fail, the next look tries again
            done = self._recover()
            _, refused = start_live(self.server, endpoints)
        without = f", without {', '.join(refused)}" if refused else ""
        return [*done, f"{reason}: server started afresh in {time.monotonic() - began:.1f} s{without}"]

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[bool]:
        """Hold the server's lock; False if a deploy or stop holds it, which is left to do its work."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.server.lock())
            except ServerError:
                yield False
                return
            yield True
