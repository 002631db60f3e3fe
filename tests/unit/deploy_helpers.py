"""A VAR with releases whose server is only said to run, so that a deploy can be cut off anywhere."""

from __future__ import annotations

import itertools
import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from live_repository_helpers import ENCODER_KEPT, check_whole
from serving_helpers import build_release
from tritonclient import grpc

from serving import deploy as deploying
from serving import liveness, process_tree
from serving.deploy import Deployment, deploy
from serving.embedded import Endpoints
from serving.errors import LateError, ServerError
from serving.gates.gates import Gates
from serving.journal import Journal, Publication
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.probe import ProbeAnswer
from serving.releases import Release
from serving.server import Server, ServerState

ENDPOINTS = Endpoints(grpc_port=7001, http_port=7002, metrics_port=7003)


class Shop:
    """A domain with three releases.

    Attributes:
        broken: the releases that do not answer.
        busy: whether too many wait for it to answer a probe, though it answers others.
        loaded: the models that the server was told to load.
    """

    def __init__(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout, self.repository, self.server = layout, LiveRepository(layout.live), Server(layout)
        self.releases = {n: build_release(layout.releases("shop"), n, steps) for n, steps in ENCODER_KEPT.items()}
        self.broken: set[int] = set()
        self.busy = False
        self.answered = itertools.count()
        self.loaded: list[str] = []
        client = SimpleNamespace(
            load_model=lambda model, **_: self.loaded.append(model),
            unload_model=lambda *_, **__: None,
            is_model_ready=lambda *_, **__: True,
            get_model_repository_index=lambda **_: SimpleNamespace(models=[]),
            get_inference_statistics=self.statistics,
        )
        monkeypatch.setattr(grpc, "InferenceServerClient", lambda *_, **__: nullcontext(client))
        monkeypatch.setattr(Server, "start", lambda _, endpoints, __: self.say_it_runs(endpoints))
        monkeypatch.setattr(Server, "stop", lambda _, forget=True, **__: self.crash(forget=forget))
        for name in ("wait_until_up", "wait_until_ready"):
            monkeypatch.setattr(Server, name, lambda *_, **__: None)
        for module in (deploying, liveness):
            monkeypatch.setattr(module, "probe_release", self.probe)
        monkeypatch.setattr(deploying, "PROBE_PATIENCE_SECONDS", 0.0)
        for name in ("answer_beforehand", "stage_feedback", "publish_feedback"):
            monkeypatch.setattr(deploying, name, lambda *_: None)

    def say_it_runs(self, endpoints: Endpoints = ENDPOINTS) -> ServerState:
        """Write down this very process as the server."""
        identity = process_tree.identity(os.getpid()) or ""
        state = ServerState(
            pid=os.getpid(), identity=identity, started="2026-01-01T00:00:00+00:00", endpoints=endpoints
        )
        self.layout.var.mkdir(parents=True, exist_ok=True)
        self.layout.server_state.write_text(state.model_dump_json())
        return state

    def crash(self, *, forget: bool = False) -> None:
        """The server is gone; with `forget` it was meant to go."""
        state = self.server.state()
        if state is not None:
            gone = state.model_copy(update={"identity": "gone"})
            self.layout.server_state.write_text(gone.model_dump_json())
        if forget and self.layout.server_state.exists():
            self.layout.server_state.replace(self.layout.stopped_server_state)

    def probe(self, _: str, release: Release, **__: Any) -> ProbeAnswer:
        live = self.repository.live_release("shop")
        if live is None or live.number != release.number or release.number in self.broken:
            raise ServerError(f"release {release.number} does not answer")
        if self.busy:
            raise LateError("Deadline Exceeded")
        return ProbeAnswer(release=str(release.number), model_version=str(release.number), milliseconds=1.0)

    def statistics(self, *_: Any, **__: Any) -> Any:
        """Others are answered between any two looks, as long as the server is busy."""
        counts = SimpleNamespace(success=SimpleNamespace(count=next(self.answered) if self.busy else 0))
        return SimpleNamespace(model_stats=[SimpleNamespace(inference_stats=counts)])

    def deploy(self, number: int, gates: Gates | None = None, **options: Any) -> Deployment:
        return deploy(self.layout, self.releases[number], ENDPOINTS, gates=gates, **options)

    def live(self) -> int:
        """The release that is live, whole."""
        return check_whole(self.repository, self.releases)

    def journal(self) -> list[Publication]:
        return Journal(self.layout.journal("shop")).publications()
