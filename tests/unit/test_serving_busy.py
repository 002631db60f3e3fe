"""A server that refuses a probe because too many wait is busy, not silent: it is not started afresh for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_repository_helpers import publish
from serving_helpers import build_release
from tritonclient.utils import InferenceServerException

from serving import healing
from serving.embedded import Endpoints
from serving.errors import BusyError, ServerError
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.probe import ask
from serving.server import ServerState


class Refusing:
    """A connection to a server that answers every request with this."""

    def __init__(self, message: str) -> None:
        self.message = message

    def infer(self, *_: Any, **__: Any) -> Any:
        raise InferenceServerException(self.message, status="StatusCode.UNAVAILABLE")


@pytest.mark.parametrize(
    ("message", "kind"),
    [("in ensemble 'shop', Exceeds maximum queue size: too many", BusyError), ("Socket closed", ServerError)],
)
def test_a_full_queue_is_told_from_other_trouble(message: str, kind: type[ServerError]) -> None:
    with pytest.raises(ServerError) as refused:
        ask(Refusing(message), "shop", "a shirt")
    assert type(refused.value) is kind


class Probes:
    """What each probe meets, in turn; None is an answer."""

    def __init__(self, met: list[ServerError | None]) -> None:
        self.met, self.made = met, 0

    def __call__(self, *_: Any, **__: Any) -> None:
        met = self.met[min(self.made, len(self.met) - 1)]
        self.made += 1
        if met is not None:
            raise met


@pytest.fixture
def healer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> healing.Healer:
    """Of a server whose stubs all run; restarts are only said."""
    layout = Layout(tmp_path / "var")
    publish(
        LiveRepository(layout.live), build_release(layout.releases("shop"), 1, {"encoder": (1, "e"), "topk": (1, "t")})
    )
    state = ServerState(pid=1, identity="running", started="2026-01-01T00:00:00+00:00", endpoints=Endpoints())
    monkeypatch.setattr(healing.Server, "state", lambda _: state)
    monkeypatch.setattr(healing, "find_stubs", lambda _: healing.Stubs(frozenset(), {}))
    monkeypatch.setattr(healing, "loaded_steps", lambda *_: frozenset())
    monkeypatch.setattr(healing, "PROBE_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(healing, "BUSY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(healing.Healer, "_restart", lambda _, reason: [f"restarted: {reason}"])
    return healing.Healer(layout)


def test_a_refused_probe_is_repeated_until_one_is_answered(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "PROBE_TIMEOUT_SECONDS", 60.0)
    probes = Probes([BusyError("full"), BusyError("full"), None])
    monkeypatch.setattr(healing, "probe_release", probes)
    assert healer.look() == []
    assert probes.made == 3


def test_only_a_server_that_refuses_all_for_long_is_started_afresh(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "probe_release", Probes([BusyError("full")]))
    assert [healer.look() for _ in range(healing.BUSY_LOOKS)] == [[]] * (healing.BUSY_LOOKS - 1) + [["restarted: full"]]


def test_a_silent_server_is_started_afresh_at_the_second_look(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "probe_release", Probes([ServerError("silent")]))
    assert [healer.look(), healer.look()] == [[], ["restarted: silent"]]
