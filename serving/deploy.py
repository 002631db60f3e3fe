"""Make a release live: on a server that runs, without a failed or a mixed answer; else by starting one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from .embedded import Endpoints
from .errors import PublishError, ServerError, ServingError
from .feedback_model import publish_feedback, stage_feedback
from .layout import Layout
from .live_repository import LiveRelease, LiveRepository
from .probe import ProbeAnswer, probe_release
from .releases import Release
from .server import Server, ServerState

PROBE_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Deployment:
    """What `deploy` did.

    Attributes:
        action: "started" a server, "published" to a running one, or "unchanged": the release was live already.
        endpoints: where the server listens.
        answer: the release's first real answer.
    """

    action: str
    endpoints: Endpoints
    answer: ProbeAnswer


def deploy(layout: Layout, release: Release, endpoints: Endpoints) -> Deployment:
    """Make a release the one that answers, and see that the server takes feedback.

    Args:
        layout: where everything lies.
        release: what to make live.
        endpoints: where a server is to listen; a running one keeps its own.

    Raises:
        ReleaseError: a file of the release is missing or not what its manifest says; nothing was changed.
        PreflightError: no server runs and none can be started; nothing was started.
        PublishError: the release failed on the server; the one before it answers.
        ServerError: the server failed.
    """
    server = Server(layout)
    with server.lock():
        release.manifest.verify(release.path)
        repository = LiveRepository(layout.live)
        state = server.state()
        if state is None:
            stage_feedback(layout)
            return _start(server, repository, release, endpoints)
        if state.endpoints != endpoints:
            raise ServerError(
                f"a server of {layout.var} runs already with {state.endpoints}, you asked for {endpoints}; "
                "run `make stop` first, or choose another VAR"
            )
        deployment = _publish(server, state, repository, release)
        publish_feedback(layout, state.endpoints.grpc_url)
        return deployment


def _start(server: Server, repository: LiveRepository, release: Release, endpoints: Endpoints) -> Deployment:
    domain = release.manifest.domain
    live = repository.live_release(domain)
    repository.stage(release)
    before = repository.switch(release)
    domains = repository.domains()
    try:
        state = server.start(endpoints, domains)
        server.wait_until_ready(state, domains)
        answer = _first_answer(state, release)
    except BaseException:
        server.stop(drain_seconds=1)
        repository.restore(domain, before)
        repository.discard(release)
        raise
    repository.retire(domain, _kept(repository, domain, live))
    return Deployment("started", state.endpoints, answer)


def _publish(server: Server, state: ServerState, repository: LiveRepository, release: Release) -> Deployment:
    domain, url = release.manifest.domain, state.endpoints.grpc_url
    live = repository.live_release(domain)
    changed = repository.stage(release)
    if live is not None and live.number == release.number and not changed:
        try:
            return Deployment("unchanged", state.endpoints, probe_release(url, release))
        except ServerError as error:
            raise ServerError(f"{error.message}; run `make stop deploy` to start it afresh") from None
    log_start = server.log_size()
    with grpc.InferenceServerClient(url) as client:
        before = None
        try:
            for step in release.manifest.steps.values():
                # Also those that an earlier deploy staged and, killed, did not load.
                if step.model in changed or not _ready(client, step.model, step.version):
                    _load(client, step.model)
                if not _ready(client, step.model, step.version):
                    reason = server.first_error(since=log_start)
                    raise PublishError(f"{step.model} version {step.version} does not get ready: {reason}")
            before = repository.switch(release)
            _load(client, domain)
            answer = _first_answer(state, release)
        except BaseException as error:
            _go_back(client, repository, release, before)
            if isinstance(error, ServingError):
                raise PublishError(f"release {release.number} is not live: {error.message}; {_still(live)}") from None
            raise
    repository.retire(domain, _kept(repository, domain, live))
    return Deployment("published", state.endpoints, answer)


def _go_back(
    client: grpc.InferenceServerClient, repository: LiveRepository, release: Release, before: str | None
) -> None:
    """Let the release before answer again, and take the failed one out; what failed first is what is reported."""
    if before is not None:
        repository.restore(release.manifest.domain, before)
        with contextlib.suppress(PublishError):
            _load(client, release.manifest.domain)
    repository.discard(release)


def _ready(client: grpc.InferenceServerClient, model: str, version: int) -> bool:
    try:
        return bool(client.is_model_ready(model, str(version), client_timeout=10))
    except InferenceServerException as error:
        raise PublishError(f"the server does not answer: {error.message()}") from None


def _load(client: grpc.InferenceServerClient, model: str) -> None:
    try:
        client.load_model(model, client_timeout=120)
    except InferenceServerException as error:
        raise PublishError(f"Triton refuses {model}: {error.message()}") from None


def _first_answer(state: ServerState, release: Release) -> ProbeAnswer:
    """Probe until the release answers: just after a load, requests may meet the old one for an instant."""
    deadline = time.monotonic() + PROBE_PATIENCE_SECONDS
    while True:
        try:
            return probe_release(state.endpoints.grpc_url, release)
        except ServerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _kept(repository: LiveRepository, domain: str, before: LiveRelease | None) -> list[LiveRelease]:
    """The releases whose files stay: what is live now, and what was live before it, one step away."""
    now = repository.live_release(domain)
    return [release for release in (now, before) if release is not None]


def _still(live: LiveRelease | None) -> str:
    return f"release {live.number} still answers" if live else "nothing was live before"
