"""Start the server again with what is live: after a reboot, after `make stop`, and for the watcher after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .canary.ensemble import load_canaries
from .embedded import Endpoints
from .errors import PublishError, ServerError
from .feedback_model import repoint_feedback
from .layout import Layout
from .live_repository import LiveRepository
from .liveness import ask_domain
from .recovery import recover
from .releases import ReleaseStore
from .server import MENDING_SECONDS, Server, ServerState

FIRST_ANSWER_SECONDS = 30.0
"""A machine that has just booted reads everything from its disk."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What `start` did.

    Attributes:
        endpoints: where the server listens.
        is_new: False if it ran already.
        live: the number of each domain's live release.
        refused: canaries that it could not load.
    """

    endpoints: Endpoints
    is_new: bool
    live: Mapping[str, int]
    refused: tuple[str, ...] = ()


def start(layout: Layout, wanted: Mapping[str, Any]) -> Start:
    """Start a server with just what the live repository holds; nothing happens where one runs.

    Args:
        layout: where everything lies.
        wanted: those of the endpoints that are not to be where the last server listened; None stands for one that is.

    Raises:
        PreflightError: the machine lacks something; said before anything is started.
        PublishError: the live repository cannot be written, or is damaged.
        ServerError: nothing is live, the server failed, or one runs elsewhere than wanted.
    """
    server = Server(layout)
    with server.lock(patience_seconds=MENDING_SECONDS):
        recover(layout)
        if (state := server.state()) is not None:
            server.wait_until_up(state)
        endpoints = server.wanted_endpoints(wanted)
        live = _live(layout)
        if not live:
            raise ServerError(f"no release is live in {layout.var}, there is nothing to start; run `make deploy`")
        if (state := server.state()) is not None:
            if state.endpoints != endpoints:
                raise ServerError(
                    f"a server of {layout.var} runs already with {state.endpoints}, you asked for {endpoints}; "
                    "run `make stop` first"
                )
            return Start(endpoints, False, live)
        before = server.remembered()
        try:
            state, refused = start_live(server, endpoints)
        except BaseException:
            server.undo_start(before)
            raise
        return Start(state.endpoints, True, live, tuple(refused))


def start_live(server: Server, endpoints: Endpoints) -> tuple[ServerState, list[str]]:
    """Start a server with the live releases and the canaries. The caller holds the server's lock, and none runs.

    Returns:
        Its state, and the canaries that it refuses.

    Raises:
        ServingError: it does not get ready; what was started is left to the caller.
    """
    repository = LiveRepository(server.layout.live)
    try:
        repoint_feedback(server.layout)
    except PublishError as error:  # recommendations do not wait for it
        logger.warning("feedback goes where it went before: %s", error.message)
    try:
        state = _start(server, endpoints)
    except ServerError as error:
        if not (engines := repository.steps.variants()):
            raise
        repository.drop_variants(engines)  # the ONNX graphs need neither their GPU nor its memory
        logger.warning("started without the engines of %s: %s", ", ".join(engines), error.message)
        server.stop(drain_seconds=1, forget=False)
        state = _start(server, endpoints)
    return state, load_canaries(server.layout, state.endpoints.grpc_url)


def first_answer(layout: Layout, domain: str, number: int, url: str) -> float | None:
    """Wait until a live release answers a real instruction.

    Returns:
        The milliseconds that it took; None if it is too busy for this one, answers others, and so is up.

    Raises:
        ReleaseError: its folder is gone or damaged, so nobody can tell.
        ServerError: it does not answer.
    """
    release = ReleaseStore(layout.releases(domain)).open(number)
    deadline = time.monotonic() + FIRST_ANSWER_SECONDS
    while True:
        try:
            answer = ask_domain(url, release)
        except ServerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return answer.milliseconds if answer is not None else None


def _start(server: Server, endpoints: Endpoints) -> ServerState:
    domains = LiveRepository(server.layout.live).domains()
    state = server.start(endpoints, domains)
    server.wait_until_ready(state, domains)
    return state


def _live(layout: Layout) -> dict[str, int]:
    repository = LiveRepository(layout.live)
    found = {domain: repository.live_release(domain) for domain in repository.domains()}
    return {domain: live.number for domain, live in found.items() if live is not None}
