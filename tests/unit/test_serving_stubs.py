"""Which stubs of a server are dead or stopped: every instance of a step has one of its own."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from serving import healing, process_tree
from serving.embedded import Endpoints
from serving.healing import Healer, StubPlace, Stubs, find_stubs, loaded_steps
from serving.layout import Layout
from serving.server import ServerState

ENCODER = StubPlace("shop_encoder", 1)


class Stub:
    """A process as psutil shows it."""

    def __init__(self, layout: Layout, place: StubPlace, status: str = psutil.STATUS_SLEEPING) -> None:
        self.path = layout.live / place.model / str(place.version) / "model.py"
        self.state = status

    def cmdline(self) -> list[str]:
        return ["triton_python_backend_stub", str(self.path), "region"]

    def status(self) -> str:
        return self.state


class Triton:
    """Says which versions are READY, and with how many instances."""

    def __init__(self, groups: dict[StubPlace, list[dict[str, Any]]]) -> None:
        self.groups = groups
        self.error: InferenceServerException | None = None

    def get_model_repository_index(self, **_: Any) -> Any:
        found = [SimpleNamespace(name=one.model, version=str(one.version), state="READY") for one in self.groups]
        return SimpleNamespace(models=found)

    def get_model_config(self, model: str, version: str, **_: Any) -> Any:
        if self.error:
            raise self.error
        groups = [model_config_pb2.ModelInstanceGroup(**one) for one in self.groups[StubPlace(model, int(version))]]
        return service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(instance_group=groups))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "var")
    (layout.live / ENCODER.model / str(ENCODER.version)).mkdir(parents=True)
    return layout


def there(monkeypatch: pytest.MonkeyPatch, *stubs: Stub) -> None:
    monkeypatch.setattr(process_tree, "processes", lambda _: list(stubs))


@pytest.mark.parametrize(
    ("groups", "stubs"),
    [
        ([], 1),
        ([{"count": 1}], 1),
        ([{"count": 2}], 2),
        ([{"count": 2}, {"count": 1}], 3),
        ([{"count": 2, "gpus": [0, 1]}], 4),
    ],
)
def test_one_dead_stub_of_several_is_noticed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, groups: list[dict[str, Any]], stubs: int
) -> None:
    client = Triton({ENCODER: groups})
    there(monkeypatch, *[Stub(layout, ENCODER) for _ in range(stubs)])
    assert find_stubs(layout).dead(loaded_steps(client, layout)) == []
    there(monkeypatch, *[Stub(layout, ENCODER) for _ in range(stubs - 1)], Stub(layout, ENCODER, psutil.STATUS_ZOMBIE))
    assert find_stubs(layout).dead(loaded_steps(client, layout)) == [ENCODER]


def test_a_stopped_stub_hangs_and_is_not_dead_and_more_than_needed_are_no_fault() -> None:
    stubs = Stubs(Counter({ENCODER: 1}), [(ENCODER, psutil.Process())])
    assert stubs.dead({ENCODER: 2}) == []
    assert stubs.dead({ENCODER: 1}) == [], "while a step is loaded anew, the stubs of before are still there"
    assert stubs.dead({ENCODER: 3}) == [ENCODER]


def test_all_stopped_stubs_of_a_step_are_killed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs = [Stub(layout, ENCODER, psutil.STATUS_STOPPED) for _ in range(2)]
    there(monkeypatch, *stubs)
    killed: list[Any] = []
    reloaded: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(process_tree, "kill", killed.extend)
    monkeypatch.setattr(healing, "reload_step", lambda _, __, model, versions: reloaded.append((model, versions)))
    monkeypatch.setattr(Healer, "_at_work", lambda _: nullcontext(True))
    [said] = Healer(layout)._mend_stubs(Triton({ENCODER: [{"count": 2}]}))
    assert said.startswith("a stub of shop_encoder version 1 hangs: loaded anew")
    assert killed == stubs
    assert reloaded == [("shop_encoder", [1])]


def test_the_stubs_of_a_server_that_was_started_under_another_path_are_left_alone(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Through a link, by older code, or the folder was moved and a link left: its processes carry another name."""
    state = ServerState(pid=1, identity="running", started="2026-01-01T00:00:00+00:00", endpoints=Endpoints())
    client = Triton({ENCODER: [{"count": 1}]})
    reloaded: list[str] = []
    monkeypatch.setattr(healing.Server, "state", lambda _: state)
    monkeypatch.setattr(healing, "admin_client", lambda *_: nullcontext(client))
    monkeypatch.setattr(healing, "reload_step", lambda _, __, model, ___: reloaded.append(model))
    healer = Healer(layout)
    assert [healer.look() for _ in range(3)] == [[], [], []]
    assert reloaded == []
    [said] = caplog.messages
    assert f"another path than {layout.var}" in said
    assert "run `make stop start`" in said


def test_a_step_that_is_unloaded_meanwhile_needs_no_stub_and_a_hung_server_is_told(layout: Layout) -> None:
    client = Triton({ENCODER: [{"count": 1}]})
    client.error = InferenceServerException("is not at ready state", status="StatusCode.UNAVAILABLE")
    assert loaded_steps(client, layout) == {ENCODER: 0}
    client.error = InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")
    with pytest.raises(InferenceServerException):
        loaded_steps(client, layout)
