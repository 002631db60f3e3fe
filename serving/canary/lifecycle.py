"""Put a canary up, let it answer more or fewer people, and take it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ..admin import admin_client, refusal
from ..deploy import load_steps
from ..engine_variants import engine_waits, engine_warning, take_out, uses_engine
from ..errors import BusyError, GateError, PublishError, ReleaseError, ServerError, ServingError
from ..gates.gates import Gates
from ..journal import Journal
from ..layout import Layout
from ..live_repository import CONFIG_NAME, LiveRepository, read_config
from ..probe import ProbeAnswer, probe_release
from ..recovery import recover
from ..releases import Release
from ..server import Server, ServerState
from .ensemble import Canary, new_canary, read_canary, remove_canary, with_share, write_canary
from .evidence import count_refused, count_requests
from .journal import Action, CanaryJournal

PATIENCE_SECONDS = 5.0
"""So long a request that is refused because too many wait is sent again."""
PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class PutUp:
    """What `put_up` did.

    Attributes:
        canary: as it is now.
        answer: its first real answer.
        live: the number of the release that it is held against.
        warnings: why an engine of the two releases does not answer.
    """

    canary: Canary
    answer: ProbeAnswer
    live: int
    warnings: tuple[str, ...] = ()


def put_up(layout: Layout, release: Release, share: float, gates: Gates) -> PutUp:
    """Let a release answer beside the live one; for one that does already, change its share.

    With another share the evidence begins anew; the same share once more changes nothing.

    Args:
        layout: where everything lies.
        release: what to try.
        share: of the people, 0 to 1; 0 is for shadows alone.
        gates: what the release has to pass first.

    Raises:
        ServingError: no server runs, another canary is up, the release is live or failed a gate or on the server; the
            live release answers as before, and a canary that is up has the share that it had.
    """
    if not 0 <= share <= 1:
        raise ServingError(f"the share of the people is a number from 0 to 1, not {share:g}; SHARE=0.1 is one in ten")
    domain, server = release.manifest.domain, Server(layout)
    with server.lock():
        recover(layout)
        state, repository = running(server)
        live = live_number(repository, domain)
        before = read_canary(repository, domain)
        if live == release.number:
            raise PublishError(f"release {live} of {domain} is live: it needs no canary")
        if before is not None and before.release != release.number:
            raise PublishError(
                f"release {before.release} of {domain} is the canary already; "
                "run `make canary-verdict` or `make canary-drop` first"
            )
        live_release = Release(layout.releases(domain) / str(live))
        engine = uses_engine(repository, live_release)
        with admin_client(layout, state.endpoints.grpc_url) as client:
            if before is not None:
                canary, answer = _change_share(repository, client, state, before, share, live, release)
            else:
                canary, answer = _put_up(server, state, repository, client, release, live, share, gates)
        CanaryJournal(layout.canary_journal(domain)).write(
            release.number, "share" if before else "up", share, ", ".join(canary.forced), requests=1
        )
        return PutUp(canary, answer, live, _engine_warnings(repository, live_release, release, before=engine))


def _engine_warnings(repository: LiveRepository, live: Release, release: Release, *, before: bool) -> tuple[str, ...]:
    """Why an engine of the two releases does not answer, of the live one's only where it did before."""
    said = [engine_warning(release) or engine_waits(repository, release)]
    if before and not uses_engine(repository, live):
        said.append(
            f"release {live.number}, which is live, answers by its ONNX graph as long as the canary is up: Triton "
            "loads a step's versions with one config, and not both have an engine that runs here (docs/tensorrt.md)"
        )
    return tuple(one for one in said if one)


def _put_up(
    server: Server,
    state: ServerState,
    repository: LiveRepository,
    client: grpc.InferenceServerClient,
    release: Release,
    live: int,
    share: float,
    gates: Gates,
) -> tuple[Canary, ProbeAnswer]:
    domain, url = release.manifest.domain, state.endpoints.grpc_url
    live_release = Release(server.layout.releases(domain) / str(live))
    release.manifest.verify(release.path)
    log_start, engine = server.log_size(), uses_engine(repository, live_release)
    try:
        gates.check_files(release, live_release)
        changed = repository.stage(release, variants=engine_warning(release) is None)
        load_steps(client, server, release, changed, log_start)
        gates.check_answers(client, url, release, live_release)
        live_before = count_requests(state.endpoints, domain, live)
        canary = new_canary(release, share, gates.failed, live_before, _refused(state, release))
        write_canary(repository, canary, release)
        answer = _first_answer(client, state, canary, release)
        repository.confirm(domain)  # its steps are pinned by the canary now
        return canary, answer
    except BaseException as error:
        remove_canary(repository, domain, client)
        _unstage(server.layout, repository, client, release, engine=engine)
        if isinstance(error, ServingError):
            if ended := server.ended(state, since=log_start):
                raise PublishError(f"release {release.number} is no canary: {ended}") from None
            kind = GateError if isinstance(error, GateError) else PublishError
            raise kind(f"release {release.number} is no canary: {error.message}; release {live} answers all") from None
        raise


def _change_share(
    repository: LiveRepository,
    client: grpc.InferenceServerClient,
    state: ServerState,
    before: Canary,
    share: float,
    live: int,
    release: Release,
) -> tuple[Canary, ProbeAnswer]:
    if share == before.share:
        return before, _first_answer(client, state, before, release)
    live_before = count_requests(state.endpoints, before.domain, live)
    canary = with_share(before, share, live_before, _refused(state, release))
    try:
        write_canary(repository, canary, release)
        return canary, _first_answer(client, state, canary, release)
    except BaseException:
        with suppress(PublishError, InferenceServerException):  # what failed first is what is reported
            # Loading it anew began its own counts anew, so those of the live release have to as well.
            again = replace(before, live_before=canary.live_before, refused_before=canary.refused_before)
            write_canary(repository, again, release)
            client.load_model(before.model, client_timeout=60)
        raise


def _refused(state: ServerState, release: Release) -> int | None:
    """How many requests the first step of a release, which is loaded, has refused by now; None: nobody knows."""
    first = read_config(release.models / release.manifest.domain / CONFIG_NAME).ensemble_scheduling.step[0]
    return count_refused(state.endpoints, first.model_name, first.model_version)


def _first_answer(
    client: grpc.InferenceServerClient, state: ServerState, canary: Canary, release: Release
) -> ProbeAnswer:
    """Have the server load what is written of a canary, and probe; a server that is busy is asked again."""
    try:
        client.load_model(canary.model, client_timeout=60)
    except InferenceServerException as error:
        raise PublishError(refusal(canary.model, error)) from None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return probe_release(state.endpoints.grpc_url, release, model=canary.model)
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)


def take_down(
    layout: Layout,
    domain: str,
    *,
    action: Action = "taken down",
    reason: str = "",
    check: Callable[[], None] | None = None,
) -> Canary:
    """Let the live release answer everybody again.

    Args:
        layout: where everything lies.
        domain: whose canary.
        action: what the journal calls it.
        reason: likewise, why.
        check: called before anything is changed, when no other command can be at work; what it raises ends this.

    Raises:
        ServingError: there is no canary, or the live repository cannot be written.
    """
    server = Server(layout)
    with server.lock():
        if check is not None:
            check()
        repository = LiveRepository(layout.live)
        canary = current_canary(repository, domain)
        state = server.state()
        release = Release(layout.releases(domain) / str(canary.release))
        if state is None:
            remove_canary(repository, domain, None)
            with suppress(ReleaseError):
                take_out(repository, release, _live(layout, repository, domain))
        else:
            with admin_client(layout, state.endpoints.grpc_url) as client:
                remove_canary(repository, domain, client)
                _unstage(layout, repository, client, release)
        CanaryJournal(layout.canary_journal(domain)).write(canary.release, action, canary.share, reason)
        return canary


def _unstage(
    layout: Layout,
    repository: LiveRepository,
    client: grpc.InferenceServerClient,
    release: Release,
    *,
    engine: bool | None = None,
) -> None:
    """Take out what only this release needs, and have the server let go of it.

    The release to which `make rollback` would go stays loaded.
    """
    domain = release.manifest.domain
    live = repository.live_release(domain)
    if live is not None and Journal(layout.journal(domain)).live_before(live.number) == release.number:
        repository.confirm(domain)
        return
    try:
        steps = list(release.manifest.steps.values())
    except ReleaseError:
        return  # its folder was removed; the next publish cleans up
    folders = [repository.folder / step.model / str(step.version) for step in steps]
    there = [folder.is_dir() for folder in folders]
    settled = take_out(repository, release, _live(layout, repository, domain), engine=engine)
    for step, folder, was_there in zip(steps, folders, there, strict=True):
        if (was_there and not folder.is_dir()) or step.model in settled:
            with suppress(InferenceServerException):  # this frees memory, or brings an engine back
                client.load_model(step.model, client_timeout=120)


def _live(layout: Layout, repository: LiveRepository, domain: str) -> Release | None:
    live = repository.live_release(domain)
    return Release(layout.releases(domain) / str(live.number)) if live is not None else None


def running(server: Server) -> tuple[ServerState, LiveRepository]:
    """The state of the server and the live repository.

    Raises:
        ServerError: no server runs.
    """
    return server.require_state(), LiveRepository(server.layout.live)


def live_number(repository: LiveRepository, domain: str) -> int:
    """The number of the release that a canary is held against.

    Raises:
        ServerError: there is none.
    """
    live = repository.live_release(domain)
    if live is None:
        raise ServerError(
            f"no release of {domain} is live, there is nothing to hold a canary against; run `make deploy`"
        )
    return live.number


def current_canary(repository: LiveRepository, domain: str) -> Canary:
    """The canary that is up.

    Raises:
        PublishError: there is none.
    """
    canary = read_canary(repository, domain)
    if canary is None:
        raise PublishError(f"{domain} has no canary; `make canary RELEASE=<number> SHARE=0.1` puts one up")
    return canary
