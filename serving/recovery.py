"""Bring publishes to an end that were killed half-way: the next command does so first, or the watcher before it.

A publish leaves a mark in the live repository until its release has answered and stands in the journal. Where there is
a mark and nobody at work, the release either answers, and what was missing is written down; or it is taken back, and
what answered before goes on. So no server is ever started from a release that never gave an answer.
"""

from __future__ import annotations

import contextlib

from tritonclient.utils import InferenceServerException

from .admin import admin_client
from .canary.ensemble import leave_to_live
from .engine_variants import take_out
from .errors import ReleaseError, ServerError
from .journal import Journal
from .layout import Layout
from .live_repository import LiveRelease, LiveRepository
from .liveness import ask_domain
from .releases import Release, ReleaseStore
from .server import Server, ServerState
from .unfinished import Intent, Unfinished

VERB = "recovered"
"""In the journal: the command that asked for the publication was killed, and what it was is not known."""


def recover(layout: Layout) -> list[str]:
    """End every publish that was killed. The caller holds the server's lock, so none is at work.

    Returns:
        What was found and done, a line each.

    Raises:
        PublishError: the live repository cannot be written.
        ServerError: a server runs and does not answer, not even that it lives.
    """
    repository, server = LiveRepository(layout.live), Server(layout)
    done = []
    for one in repository.marks.all():
        state = server.state()
        if state is not None:
            server.wait_until_up(state)
            state = server.state()  # it may have ended meanwhile, of the very release
        if state is not None and _answers(layout, state, one):
            _write_down(layout, repository, state, one)
            done.append(f"the publish of {one.domain} release {one.number} was killed after it answered: kept")
        else:
            _take_back(layout, state, one)
            live = repository.live_release(one.domain)
            again = live is not None and live.number == one.number  # it was deployed once more, and had answered before
            became = "stays as it was before" if again else "taken back"
            done.append(f"the publish of {one.domain} release {one.number} was killed: {became}")
    return done


def _release(layout: Layout, one: Unfinished) -> Release | None:
    """The release on disk; None if it was removed or damaged since."""
    with contextlib.suppress(ReleaseError):
        release = ReleaseStore(layout.releases(one.domain)).open(one.number)
        release.manifest  # noqa: B018 - read, and so checked, here
        return release
    return None


def _answers(layout: Layout, state: ServerState, one: Unfinished) -> bool:
    live, release = LiveRepository(layout.live).live_release(one.domain), _release(layout, one)
    if live is None or live.number != one.number or release is None:
        return False
    with contextlib.suppress(ReleaseError, ServerError):
        # One that is busy has answered others by now: no reason to take it from them.
        ask_domain(state.endpoints.grpc_url, release)
        return True
    return False


def _write_down(layout: Layout, repository: LiveRepository, state: ServerState, one: Unfinished) -> None:
    journal = Journal(layout.journal(one.domain))
    last = next(reversed(journal.publications()), None)
    if last is None or last.release != one.number:
        intent = one.intent or Intent(verb=VERB)
        journal.write(one.number, last.release if last else None, intent.verb, intent.forced)
    if (release := _release(layout, one)) is not None:  # a release deployed once more may not have come to its engine
        _reload(layout, state, [step.model for step in release.manifest.steps.values()], repository)
    leave_to_live(layout, one.domain, one.number, state.endpoints.grpc_url)
    repository.confirm(one.domain)


def _take_back(layout: Layout, state: ServerState | None, one: Unfinished) -> None:
    repository, release = LiveRepository(layout.live), _release(layout, one)
    live = repository.live_release(one.domain)
    switched = live is not None and live.number == one.number
    if switched:
        repository.restore(one.domain, one.before)
    if state is not None and switched:
        _reload(layout, state, [one.domain], repository)
    if release is not None:
        now = repository.live_release(one.domain)
        live_on_disk = Release(layout.releases(one.domain) / str(now.number)) if now is not None else None
        settled = take_out(repository, release, live_on_disk)
        if state is not None:
            steps = {step.model for step in release.manifest.steps.values()}
            _reload(layout, state, sorted(steps.union(settled)), repository)
    repository.confirm(one.domain)


def _reload(layout: Layout, state: ServerState, models: list[str], repository: LiveRepository) -> None:
    """Have the server hold what the live repository says; a model whose files did not change is left alone by it."""
    with admin_client(layout, state.endpoints.grpc_url) as client:
        for model in models:
            with contextlib.suppress(InferenceServerException):  # what answers is looked at by whoever goes on
                if repository.holds(model):
                    client.load_model(model, client_timeout=120)
                else:
                    client.unload_model(model, client_timeout=10)


def one_step_away(layout: Layout, repository: LiveRepository) -> dict[str, LiveRelease]:
    """What answered before the live release of each domain: their steps stay, so that they go back at once."""
    found = {}
    for domain in repository.domains():
        live = repository.live_release(domain)
        number = Journal(layout.journal(domain)).live_before(live.number) if live is not None else None
        if number is not None:
            with contextlib.suppress(ReleaseError):
                steps = ReleaseStore(layout.releases(domain)).open(number).manifest.steps.values()
                found[domain] = LiveRelease(number, {step.model: step.version for step in steps})
    return found


def unload_strays(layout: Layout, state: ServerState, repository: LiveRepository) -> list[str]:
    """Unload what the live repository no longer holds: by this publish, or by one that was killed before it came to it.

    Returns:
        The models.
    """
    gone: list[str] = []
    with contextlib.suppress(InferenceServerException), admin_client(layout, state.endpoints.grpc_url) as client:
        models = client.get_model_repository_index(client_timeout=10).models
        for name in sorted({model.name for model in models if model.state == "READY"}):
            if not repository.holds(name):
                client.unload_model(name, client_timeout=10)
                gone.append(name)
    return gone
