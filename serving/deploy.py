"""Make a release live: on a server that runs, without a failed or a mixed answer; else by starting one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from .admin import admin_client, refusal
from .canary.ensemble import leave_to_live, load_canaries
from .candidate import answer_beforehand
from .embedded import Endpoints
from .engine_variants import engine_waits, engine_warning, take_out, uses_engine
from .errors import GateError, PublishError, ReleaseError, ServerError, ServingError
from .feedback_model import publish_feedback, stage_feedback
from .gates.gates import Gates
from .journal import Journal
from .layout import Layout
from .live_repository import LiveRelease, LiveRepository
from .liveness import ask_domain
from .probe import ProbeAnswer, probe_release
from .recovery import one_step_away, recover, unload_strays
from .releases import Release, ReleaseStore
from .server import MENDING_SECONDS, Server, ServerState
from .unfinished import Intent

PROBE_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Deployment:
    """What `deploy` did.

    Attributes:
        action: "started" a server, "published" to a running one, or "unchanged": the release was live already.
        endpoints: where the server listens.
        release: the number of the release that answers.
        answer: its first real answer; None if it was live already and is too busy for one: it answers others.
        switch_seconds: from the moment when all of the release was loaded until it answered; None if no running
            server had to be switched.
        warnings: why the release's engine is not used, if it has one, and what lets it answer; and what else could not
            be done once the release was live.
        forced: the gates that the release did not pass and was let through all the same.
    """

    action: str
    release: int
    endpoints: Endpoints
    answer: ProbeAnswer | None
    switch_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Order:
    """What is to go live, what it has to pass, and on whose word.

    Attributes:
        forced_before: the gates that it was let through before, as a canary.
    """

    release: Release
    gates: Gates | None
    verb: str
    forced_before: tuple[str, ...] = ()

    @property
    def intent(self) -> Intent:
        """What the journal is to say, by what the gates have found so far."""
        return Intent(verb=self.verb, forced=self.gates.failed if self.gates is not None else self.forced_before)


def deploy(
    layout: Layout,
    release: Release,
    endpoints: Endpoints,
    *,
    gates: Gates | None,
    verb: str = "deploy",
    forced: tuple[str, ...] = (),
    patience_seconds: float = 0.0,
    check: Callable[[], None] | None = None,
) -> Deployment:
    """Make a release the one that answers, and write it into the domain's journal.

    Args:
        layout: where everything lies.
        release: what to make live.
        endpoints: where a server is to listen; a running one keeps its own.
        gates: what the release has to pass; None for one that answered before, or was judged as a canary.
        verb: what the journal says asked for it.
        forced: gates that it was let through before, as a canary; the journal says so.
        patience_seconds: how long to wait for another command, or for the watcher, to be done.
        check: called before anything is changed, when no other command can be at work; what it raises ends this.

    Raises:
        ReleaseError: a file of the release is missing or not what its manifest says; nothing was changed.
        GateError: the release did not pass a gate; the one before it answers.
        PreflightError: no server runs and none can be started; nothing was started.
        PublishError: the release failed on the server; the one before it answers.
        ServerError: the server failed.
    """
    server = Server(layout)
    with server.lock(patience_seconds=patience_seconds):
        recover(layout)
        if check is not None:
            check()
        return _make_live(server, _Order(release, gates, verb, forced), endpoints)


def roll_back(layout: Layout, domain: str, number: int | None = None) -> Deployment:
    """Let an earlier release of a domain answer again; without a number the one that answered before the live one.

    If no server runs, as when the live release has crashed it, one is started where it listened last. The watcher is
    waited for, should it be mending.

    Raises:
        ReleaseError: there is no such release, or the journal does not know what answered before.
        ServingError: as `deploy`.
    """
    server = Server(layout)
    with server.lock(patience_seconds=MENDING_SECONDS):
        recover(layout)
        live = LiveRepository(layout.live).live_release(domain)
        if live is None:
            raise ServerError(f"no release of {domain} is live in {layout.var}, there is nothing to roll back")
        if number is None:
            number = Journal(layout.journal(domain)).live_before(live.number)
            if number is None:
                raise ReleaseError(
                    f"nothing is known to have answered before release {live.number} of {domain}; "
                    "name a release: make rollback TO=<number> (`make releases` lists them)"
                )
        release = ReleaseStore(layout.releases(domain)).open(number)
        return _make_live(server, _Order(release, None, "rollback"), server.last_endpoints())


def _make_live(server: Server, order: _Order, endpoints: Endpoints) -> Deployment:
    """What `deploy` does; the caller holds the server's lock and has ended what was killed."""
    layout, release = server.layout, order.release
    release.manifest.verify(release.path)
    domain, warning = release.manifest.domain, engine_warning(release)
    warnings = [warning] if warning else []
    repository = LiveRepository(layout.live)
    before = repository.live_release(domain)
    is_new = before is None or before.number != release.number
    if not is_new:
        order = replace(order, gates=None)
    live = Release(layout.releases(domain) / str(before.number)) if before else None
    if order.gates is not None:
        try:
            order.gates.check_files(release, live)
        except GateError as error:
            raise GateError(f"{error.message}; nothing was changed") from None
    deployment = _deploy(server, repository, order, endpoints, warning is None)
    url, intent = deployment.endpoints.grpc_url, order.intent
    if is_new:
        journal = Journal(layout.journal(domain))
        journal.write(release.number, before.number if before else None, intent.verb, intent.forced)
    repository.confirm(domain)
    with _warned(warnings):
        leave_to_live(layout, domain, release.number, url)
    if deployment.action != "started":  # else it came up with the server
        with _warned(warnings):
            publish_feedback(layout, url)
    if deployment.action != "unchanged":
        _retire(server, repository, domain, before if is_new else None)
    waits = engine_waits(repository, release) if warning is None else None
    warnings += [waits] if waits else []
    return replace(deployment, warnings=tuple(warnings), forced=intent.forced)


@contextlib.contextmanager
def _warned(warnings: list[str]) -> Iterator[None]:
    """Only say what fails: the release is live and in the journal, so its publication did not."""
    try:
        yield
    except PublishError as error:
        warnings.append(error.message)


def _deploy(
    server: Server, repository: LiveRepository, order: _Order, endpoints: Endpoints, with_engine: bool
) -> Deployment:
    state = server.state()
    if state is not None:
        server.wait_until_up(state)
        state = server.state()
    if state is None:
        stage_feedback(server.layout)
        return _start(server, repository, order, endpoints, with_engine)
    if state.endpoints != endpoints:
        raise ServerError(
            f"a server of {server.layout.var} runs already with {state.endpoints}, you asked for {endpoints}; "
            "run `make stop` first, or choose another VAR"
        )
    return _publish(server, state, repository, order, with_engine)


def _start(
    server: Server, repository: LiveRepository, order: _Order, endpoints: Endpoints, with_engine: bool
) -> Deployment:
    release, domain = order.release, order.release.manifest.domain
    live, before = repository.live_release(domain), repository.ensemble_config(domain)
    remembered, failed = server.remembered(), _Failed(server, repository, release)
    try:
        repository.stage(release, variants=with_engine)
        repository.marks.intend(domain, release.number, order.intent)
        repository.switch(release)
        if live is not None and remembered is not None:
            repository.unlist(live)  # the server died, maybe of what this release alone needs
            repository.settle(release, variants=with_engine)
        domains = repository.domains()
        try:
            state = server.start(endpoints, domains)
            server.wait_until_ready(state, domains)
            answer = _first_answer(state, release)
        except BaseException:
            server.undo_start(remembered)
            raise
    except BaseException:
        if _switched(repository, domain, live):
            with contextlib.suppress(PublishError):
                repository.restore(domain, before)
        failed.take_out()
        raise
    load_canaries(server.layout, state.endpoints.grpc_url)
    return Deployment("started", release.number, state.endpoints, answer)


def _publish(
    server: Server, state: ServerState, repository: LiveRepository, order: _Order, with_engine: bool
) -> Deployment:
    release, url = order.release, state.endpoints.grpc_url
    domain = release.manifest.domain
    live, before = repository.live_release(domain), repository.ensemble_config(domain)
    failed = _Failed(server, repository, release)
    try:
        changed = repository.stage(release, variants=with_engine)
    except BaseException:
        failed.take_out()
        raise
    if live is not None and live.number == release.number and not changed:
        try:
            return Deployment("unchanged", release.number, state.endpoints, ask_domain(url, release))
        except ServerError as error:
            failed.take_out()
            raise ServerError(f"{error.message}; run `make stop start` to start it afresh") from None
    log_start = server.log_size()
    with admin_client(server.layout, url) as client:
        try:
            load_steps(client, server, release, changed, log_start)
            if order.gates is not None and live is not None:
                before_it = Release(server.layout.releases(domain) / str(live.number))
                order.gates.check_answers(client, url, release, before_it)
            repository.marks.intend(domain, release.number, order.intent)
            began = time.monotonic()
            repository.switch(release)
            _load(client, domain)
            answer = _first_answer(state, release)
            seconds = time.monotonic() - began
        except BaseException as error:
            if _switched(repository, domain, live):
                _go_back(client, repository, domain, before)
            failed.take_out(client)
            if isinstance(error, ServingError):
                ended = server.ended(state, since=log_start)
                if isinstance(error, GateError) and not ended:
                    raise GateError(f"{error.message}; {_still(live)}") from None
                why = f"{ended}; {_not_yet(live)}" if ended else f"{error.message}; {_still(live)}"
                raise PublishError(f"release {release.number} is not live: {why}") from None
            raise
    return Deployment("published", release.number, state.endpoints, answer, seconds)


def load_steps(
    client: grpc.InferenceServerClient, server: Server, release: Release, changed: list[str], log_start: int
) -> None:
    """Have a running server load what a release pins, beside what it has, and give its first answers.

    Args:
        client: of the server.
        server: whose log says why a step does not get ready.
        release: staged before.
        changed: the models that staging changed.
        log_start: the log's size before.

    Raises:
        PublishError: a step does not get ready.
        ServerError: the release does not answer.
    """
    loaded = False
    for step in release.manifest.steps.values():
        # Also those that an earlier deploy staged and, killed, did not load.
        if step.model in changed or not _ready(client, step.model, step.version):
            _load(client, step.model)
            loaded = True
        if not _ready(client, step.model, step.version):
            reason = server.first_error(since=log_start)
            raise PublishError(f"{step.model} version {step.version} does not get ready: {reason}")
    if loaded:
        answer_beforehand(client, release)


def _switched(repository: LiveRepository, domain: str, live: LiveRelease | None) -> bool:
    """Whether a domain pins something else than before, also where the switch was cut off after its rename."""
    try:
        return repository.live_release(domain) != live
    except (OSError, PublishError):
        return True  # it cannot be read: putting the config before back is safe in either case


def _go_back(client: grpc.InferenceServerClient, repository: LiveRepository, domain: str, before: str | None) -> None:
    """Let the release before answer again; what failed first is what is reported."""
    with contextlib.suppress(PublishError):
        repository.restore(domain, before)
        if before is not None:
            _load(client, domain)
        else:
            with contextlib.suppress(InferenceServerException):
                client.unload_model(domain, client_timeout=10)


class _Failed:
    """What to do where a release turns out not to go live; made before anything of it is staged."""

    def __init__(self, server: Server, repository: LiveRepository, release: Release) -> None:
        self.repository, self.release = repository, release
        domain = release.manifest.domain
        live = repository.live_release(domain)
        self.live = Release(server.layout.releases(domain) / str(live.number)) if live is not None else None
        self.engine = uses_engine(repository, self.live)

    def take_out(self, client: grpc.InferenceServerClient | None = None) -> None:
        """Take it out; where the disk is too full even for that, the next command does (`recover`)."""
        with contextlib.suppress(PublishError):
            models = take_out(self.repository, self.release, self.live, engine=self.engine)
            for model in models if client is not None else []:
                _load(client, model)


def _retire(server: Server, repository: LiveRepository, domain: str, before: LiveRelease | None) -> None:
    """Remove what is neither live nor one step away; the release is live, so this only frees disk and memory."""
    others = one_step_away(server.layout, repository)
    own = others.pop(domain, None)
    keep = [one for one in (repository.live_release(domain), before, own) if one is not None]
    with contextlib.suppress(PublishError):
        repository.retire(domain, keep, others=others.values())
    if (state := server.state()) is not None:
        unload_strays(server.layout, state, repository)


def _ready(client: grpc.InferenceServerClient, model: str, version: int) -> bool:
    try:
        return bool(client.is_model_ready(model, str(version), client_timeout=10))
    except InferenceServerException as error:
        raise PublishError(f"the server does not answer: {error.message()}") from None


def _load(client: grpc.InferenceServerClient, model: str) -> None:
    try:
        client.load_model(model, client_timeout=120)
    except InferenceServerException as error:
        raise PublishError(refusal(model, error)) from None


def _first_answer(state: ServerState, release: Release) -> ProbeAnswer:
    """Probe until the release answers: just after a load, requests may meet the old one for an instant."""
    deadline = time.monotonic() + PROBE_PATIENCE_SECONDS
    while True:
        try:
            return probe_release(state.endpoints.grpc_url, release)
        except ServerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _still(live: LiveRelease | None) -> str:
    return f"release {live.number} still answers" if live else "nothing was live before"


def _not_yet(live: LiveRelease | None) -> str:
    if live is None:
        return _still(live)
    return f"release {live.number} answers again when the watcher or `make start` starts the server"
