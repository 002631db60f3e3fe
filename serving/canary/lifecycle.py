"""Put a canary up, let it answer more or fewer people, take it down, and act on a verdict."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ..candidate import sample_texts
from ..deploy import Deployment, deploy, engine_warning, load_steps
from ..errors import GateError, PublishError, ReleaseError, ServerError, ServingError
from ..gates.gates import Gates
from ..gates.latency import compare_latency
from ..gates.settings import CanarySettings
from ..journal import Journal
from ..layout import Layout
from ..live_repository import LiveRepository
from ..probe import ProbeAnswer, probe_release
from ..recovery import recover
from ..releases import Release, ReleaseStore
from ..server import Server, ServerState
from .ensemble import Canary, new_canary, read_canary, remove_canary, with_share, write_canary
from .evidence import count_requests, read_feedback
from .journal import Action, CanaryJournal
from .verdict import Outcome, Verdict, judge_errors, judge_feedback, judge_latency

VERDICT_PAIRS = 40


@dataclass(frozen=True)
class PutUp:
    """What `put_up` did.

    Attributes:
        canary: as it is now.
        answer: its first real answer.
        live: the number of the release that it is held against.
    """

    canary: Canary
    answer: ProbeAnswer
    live: int


def put_up(layout: Layout, release: Release, share: float, gates: Gates) -> PutUp:
    """Let a release answer beside the live one; for one that does already, change its share.

    Args:
        layout: where everything lies.
        release: what to try.
        share: of the people, 0 to 1; 0 is for shadows alone.
        gates: what the release has to pass first.

    Raises:
        ServingError: no server runs, another canary is up, the release is live or failed a gate or on the server; the
            live release answers as before.
    """
    if not 0 <= share <= 1:
        raise ServingError(f"the share of the people is a number from 0 to 1, not {share:g}; SHARE=0.1 is one in ten")
    domain, server = release.manifest.domain, Server(layout)
    with server.lock():
        recover(layout)
        state, repository = _running(server, domain)
        live = _live_number(repository, domain)
        before = read_canary(repository, domain)
        if live == release.number:
            raise PublishError(f"release {live} of {domain} is live: it needs no canary")
        if before is not None and before.release != release.number:
            raise PublishError(
                f"release {before.release} of {domain} is the canary already; "
                "run `make canary-verdict` or `make canary-drop` first"
            )
        with grpc.InferenceServerClient(state.endpoints.grpc_url) as client:
            if before is not None:
                canary = with_share(before, share)
                answer = _switch_on(repository, client, state, canary, release)
            else:
                canary, answer = _put_up(server, state, repository, client, release, live, share, gates)
        CanaryJournal(layout.canary_journal(domain)).write(
            release.number, "share" if before else "up", share, ", ".join(canary.forced)
        )
        return PutUp(canary, answer, live)


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
    try:
        gates.check_files(release, live_release)
        changed = repository.stage(release, variants=engine_warning(release) is None)
        load_steps(client, server, release, changed, server.log_size())
        gates.check_answers(client, url, release, live_release)
        canary = new_canary(release, share, gates.failed)
        answer = _switch_on(repository, client, state, canary, release)
        repository.confirm(domain)  # its steps are pinned by the canary now
        return canary, answer
    except BaseException as error:
        remove_canary(repository, domain, client)
        _unstage(server.layout, repository, client, release)
        if isinstance(error, ServingError):
            kind = GateError if isinstance(error, GateError) else PublishError
            raise kind(f"release {release.number} is no canary: {error.message}; release {live} answers all") from None
        raise


def _switch_on(
    repository: LiveRepository,
    client: grpc.InferenceServerClient,
    state: ServerState,
    canary: Canary,
    release: Release,
) -> ProbeAnswer:
    write_canary(repository, canary, release)
    try:
        client.load_model(canary.model, client_timeout=60)
    except InferenceServerException as error:
        raise PublishError(f"Triton refuses {canary.model}: {error.message()}") from None
    return probe_release(state.endpoints.grpc_url, release, model=canary.model)


def take_down(layout: Layout, domain: str, *, action: Action = "taken down", reason: str = "") -> Canary:
    """Let the live release answer everybody again.

    Raises:
        ServingError: there is no canary, or the live repository cannot be written.
    """
    server = Server(layout)
    with server.lock():
        repository = LiveRepository(layout.live)
        canary = _canary(repository, domain)
        state = server.state()
        release = Release(layout.releases(domain) / str(canary.release))
        if state is None:
            remove_canary(repository, domain, None)
            with suppress(ReleaseError):
                repository.discard(release)
        else:
            with grpc.InferenceServerClient(state.endpoints.grpc_url) as client:
                remove_canary(repository, domain, client)
                _unstage(layout, repository, client, release)
        CanaryJournal(layout.canary_journal(domain)).write(canary.release, action, canary.share, reason)
        return canary


def _unstage(layout: Layout, repository: LiveRepository, client: grpc.InferenceServerClient, release: Release) -> None:
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
    repository.discard(release)
    for step, folder, was_there in zip(steps, folders, there, strict=True):
        if was_there and not folder.is_dir():
            with suppress(InferenceServerException):  # this only frees memory
                client.load_model(step.model, client_timeout=120)


def judge(layout: Layout, domain: str, settings: CanarySettings) -> tuple[Canary, Verdict]:
    """Weigh what is known of a canary; nothing is changed.

    Raises:
        ServingError: there is no canary, or the evidence cannot be read.
    """
    server = Server(layout)
    state, repository = _running(server, domain)
    canary = _canary(repository, domain)
    live, url = _live_number(repository, domain), state.endpoints.grpc_url
    release = ReleaseStore(layout.releases(domain)).open(canary.release)
    # Counted first, so that the requests that measure latency are not among them.
    requests = count_requests(url, domain, live), count_requests(url, canary.model, canary.release)
    found = compare_latency(
        url, domain, canary.model, sample_texts(release, VERDICT_PAIRS), settings.latency_ratio, pairs=VERDICT_PAIRS
    )
    judgements = [judge_errors(*requests, settings), judge_latency(found, *requests)]
    if settings.event is not None:
        since = max(canary.start.timestamp(), _live_since(layout, domain))
        feedback = read_feedback(
            layout.var, domain, live=live, canary=canary.release, event=settings.event, since=since
        )
        judgements.append(judge_feedback(feedback, settings))
    return canary, Verdict(tuple(judgements))


def act(layout: Layout, canary: Canary, verdict: Verdict) -> Deployment | None:
    """Promote or drop a canary as a verdict says.

    Returns:
        The publication of a canary that was promoted.

    Raises:
        ServingError: as `deploy` and `take_down`.
    """
    if verdict.outcome is Outcome.DROP:
        take_down(layout, canary.domain, action="dropped", reason=verdict.reason())
    if verdict.outcome is not Outcome.PROMOTE:
        return None
    state = Server(layout).state()
    if state is None:
        raise ServerError(f"no server runs for {layout.var}; run `make deploy`")
    release = ReleaseStore(layout.releases(canary.domain)).open(canary.release)
    # People's answers have judged it: the gates have nothing to add.
    deployment = deploy(layout, release, state.endpoints, gates=None, verb="canary", forced=canary.forced)
    journal = CanaryJournal(layout.canary_journal(canary.domain))
    journal.write(canary.release, "promoted", canary.share, verdict.reason())
    return replace(deployment, forced=canary.forced)


def _running(server: Server, domain: str) -> tuple[ServerState, LiveRepository]:
    state = server.state()
    if state is None:
        raise ServerError(f"no server runs for {server.layout.var}; run `make deploy`")
    return state, LiveRepository(server.layout.live)


def _live_number(repository: LiveRepository, domain: str) -> int:
    live = repository.live_release(domain)
    if live is None:
        raise ServerError(
            f"no release of {domain} is live, there is nothing to hold a canary against; run `make deploy`"
        )
    return live.number


def _canary(repository: LiveRepository, domain: str) -> Canary:
    canary = read_canary(repository, domain)
    if canary is None:
        raise PublishError(f"{domain} has no canary; `make canary RELEASE=<number> SHARE=0.1` puts one up")
    return canary


def _live_since(layout: Layout, domain: str) -> float:
    """When the live release went live: what people did before says nothing about it beside the canary."""
    publications = Journal(layout.journal(domain)).publications()
    return publications[-1].moment.timestamp() if publications else 0.0
