"""A server that refuses a probe, or is late, because too many wait is busy, not silent: no restart mends that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_repository_helpers import publish
from serving_helpers import build_release
from tritonclient.utils import InferenceServerException

from serving import healing, liveness
from serving.embedded import Endpoints
from serving.errors import BusyError, LateError, ServerError
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.probe import ask
from serving.releases import ReleaseStore
from serving.server import ServerState

COUNT = liveness.count_answers  # the fixture replaces it


class Refusing:
    """A connection to a server that answers every request with this."""

    def __init__(self, message: str, code: str) -> None:
        self.message, self.status = message, f"StatusCode.{code}"

    def infer(self, *_: Any, **__: Any) -> Any:
        raise InferenceServerException(self.message, status=self.status)


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        ("in ensemble 'shop', Exceeds maximum queue size: too many", "UNAVAILABLE", BusyError),
        ("Deadline Exceeded", "DEADLINE_EXCEEDED", LateError),
        ("Socket closed", "UNAVAILABLE", ServerError),
    ],
)
def test_a_full_queue_and_lateness_are_told_from_other_trouble(
    message: str, code: str, kind: type[ServerError]
) -> None:
    with pytest.raises(ServerError) as refused:
        ask(Refusing(message, code), "shop", "a shirt")
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
    """Of a server whose stubs all run and which answers nobody; restarts are only said."""
    layout = Layout(tmp_path / "var")
    publish(
        LiveRepository(layout.live), build_release(layout.releases("shop"), 1, {"encoder": (1, "e"), "topk": (1, "t")})
    )
    state = ServerState(pid=1, identity="running", started="2026-01-01T00:00:00+00:00", endpoints=Endpoints())
    monkeypatch.setattr(healing.Server, "state", lambda _: state)
    monkeypatch.setattr(healing, "find_stubs", lambda _: healing.Stubs(Counter(), []))
    monkeypatch.setattr(healing, "loaded_steps", lambda *_: {})
    monkeypatch.setattr(liveness, "count_answers", lambda *_: 7)
    monkeypatch.setattr(healing, "PROBE_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(liveness, "BUSY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(healing.Healer, "_restart", lambda _, reason: [f"restarted: {reason}"])
    return healing.Healer(layout)


def test_a_refused_probe_is_repeated_until_one_is_answered(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "PROBE_TIMEOUT_SECONDS", 60.0)
    probes = Probes([BusyError("full"), BusyError("full"), None])
    monkeypatch.setattr(liveness, "probe_release", probes)
    assert healer.look() == []
    assert probes.made == 3


def test_only_a_server_that_refuses_all_for_long_is_started_afresh(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "probe_release", Probes([BusyError("full")]))
    assert [healer.look() for _ in range(healing.BUSY_LOOKS)] == [[]] * (healing.BUSY_LOOKS - 1) + [["restarted: full"]]


@pytest.mark.parametrize("silent", [ServerError("silent"), LateError("silent")])
def test_a_silent_server_is_started_afresh_at_the_second_look(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch, silent: ServerError
) -> None:
    monkeypatch.setattr(liveness, "probe_release", Probes([silent]))
    assert [healer.look(), healer.look()] == [[], ["restarted: silent"]]


def count(monkeypatch: pytest.MonkeyPatch, numbers: Iterable[int]) -> None:
    counts = iter(numbers)
    monkeypatch.setattr(liveness, "count_answers", lambda *_: next(counts))


@pytest.mark.parametrize("met", [LateError("late"), BusyError("full")])
def test_a_server_that_answers_others_while_the_probe_waits_is_left_alone(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch, met: ServerError
) -> None:
    monkeypatch.setattr(liveness, "probe_release", Probes([met]))
    count(monkeypatch, range(100))
    assert [healer.look() for _ in range(2 * healing.BUSY_LOOKS)] == [[]] * (2 * healing.BUSY_LOOKS)


def test_what_was_answered_between_two_looks_is_no_answer_while_the_probe_waits(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that hangs after a look is noticed as soon as ever."""
    monkeypatch.setattr(liveness, "probe_release", Probes([LateError("late")]))
    count(monkeypatch, [3, 3, 8, 8])
    assert [healer.look(), healer.look()] == [[], ["restarted: late"]]


def test_a_wrong_answer_counts_though_the_server_counts_it_as_an_answer(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "probe_release", Probes([ServerError("release 1 answers, expected 2")]))
    count(monkeypatch, range(100))
    assert healer.look() == []
    assert healer.look() == ["restarted: release 1 answers, expected 2"]


@pytest.mark.parametrize("at", ["before the probe", "after the probe"])
def test_a_server_that_does_not_say_what_it_answered_is_silent(
    healer: healing.Healer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def hung() -> Iterable[int]:
        while True:
            if at == "after the probe":
                yield 1
            raise ServerError("hung")

    monkeypatch.setattr(liveness, "probe_release", Probes([LateError("late")]))
    for expected in ([], ["restarted: hung"]):
        count(monkeypatch, hung())
        assert healer.look() == expected


def test_the_answers_of_the_release_are_counted_and_of_no_other(healer: healing.Healer) -> None:
    """The one before may still answer, where the server did not come to load the new one."""
    release = ReleaseStore(healer.layout.releases("shop")).open(1)
    answers = {("shop", "1"): 7, ("shop", "2"): 8}

    def statistics(*asked: str, **_: Any) -> SimpleNamespace:
        counts = SimpleNamespace(success=SimpleNamespace(count=answers[asked]))
        return SimpleNamespace(model_stats=[SimpleNamespace(inference_stats=counts)])

    assert COUNT(SimpleNamespace(get_inference_statistics=statistics), release) == 7

    def hung(*_: Any, **__: Any) -> None:
        raise InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")

    with pytest.raises(ServerError, match="shop: the server does not say what it answered: Deadline Exceeded"):
        COUNT(SimpleNamespace(get_inference_statistics=hung), release)


@pytest.mark.parametrize("content", [None, "", "{}\n", "[]\n"])
def test_a_release_without_an_instruction_to_ask_with_is_no_fault_of_the_server(
    healer: healing.Healer, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    instructions = healer.layout.releases("shop") / "1" / "instructions.jsonl"
    instructions.unlink()
    if content is not None:
        instructions.write_text(content)
    assert [healer.look() for _ in range(4)] == [[]] * 4
    [said] = caplog.messages
    assert said.startswith("nobody can tell whether shop answers: ")
    assert "instructions.jsonl" in said
