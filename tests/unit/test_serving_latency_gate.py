"""The time of answers on a busy server: what it refuses is asked again or left out, and nothing passes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import build_release

from serving import candidate
from serving.errors import BusyError, GateError, LateError, ServerError
from serving.gates import gates, latency
from serving.gates.gates import Gates
from serving.gates.latency import FEWEST, PAIRS, compare_latency
from serving.gates.settings import GateSettings
from serving.probe import ProbeAnswer

LIVE, NEW = "shop", "shop_candidate"
Server = Callable[[str, int], float]
"""The milliseconds of a model's answer to its n-th request; or it raises."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Server], dict[str, int]]]:
    """Let a server answer; returns how often each model was asked."""
    monkeypatch.setattr(latency.grpc, "InferenceServerClient", lambda *_, **__: nullcontext())
    monkeypatch.setattr(latency, "REFUSED_PAUSE_SECONDS", 0.0)

    def serve(server: Server) -> dict[str, int]:
        asked = {LIVE: 0, NEW: 0}

        def ask(_: Any, model: str, *__: Any, **___: Any) -> ProbeAnswer:
            asked[model] += 1
            return ProbeAnswer(release="1", model_version="1", milliseconds=server(model, asked[model]))

        for module in (candidate, latency):
            monkeypatch.setattr(module, "ask", ask)
        return asked

    return serve


def refusing(model: str, error: ServerError, *requests: int) -> Server:
    """One model meets an error at some requests; the new release takes three times as long as the live one."""

    def answer(asked: str, number: int) -> float:
        if asked == model and number in requests:
            raise error
        return 6.0 if asked == NEW else 2.0

    return answer


@pytest.mark.parametrize("model", [LIVE, NEW])
@pytest.mark.parametrize("refused", [(1,), (2, 3), (5,), (10, 12, 20)])
def test_a_refused_request_lets_nothing_pass(
    serve: Callable[[Server], dict[str, int]], model: str, refused: tuple[int, ...]
) -> None:
    asked = serve(refusing(model, BusyError("full"), *refused))
    found = compare_latency("url", LIVE, NEW, ["a shirt"], 2.0)
    assert found is not None
    assert len(found.live) == len(found.candidate) == PAIRS - len(refused)
    assert found.is_over
    assert max(asked.values()) == PAIRS + latency.WARM_UPS, "a canary's verdict counts on no more"
    serve(refusing(model, BusyError("full"), *refused))
    found = compare_latency("url", LIVE, NEW, ["a shirt"], 2.0, begun=2 * PAIRS)
    assert found is not None
    assert len(found.live) == PAIRS


def test_one_late_answer_of_the_live_release_lets_nothing_pass(serve: Callable[[Server], dict[str, int]]) -> None:
    serve(refusing(LIVE, LateError("late"), 5))
    found = compare_latency("url", LIVE, NEW, ["a shirt"], 2.0)
    assert found is not None
    assert found.is_over


def test_what_was_answered_until_then_counts_if_it_is_enough(serve: Callable[[Server], dict[str, int]]) -> None:
    dead = range(latency.WARM_UPS + FEWEST + 1, 1_000)
    asked = serve(refusing(LIVE, ServerError("dead"), *dead))
    found = compare_latency("url", LIVE, NEW, ["a shirt"], 2.0)
    assert found is not None
    assert (len(found.live), found.is_over) == (FEWEST, True)
    assert asked[LIVE] == latency.WARM_UPS + FEWEST + 1, "a live release that fails is not asked again"


def test_a_live_release_that_refuses_for_long_or_fails_is_nothing_to_compare_with(
    serve: Callable[[Server], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(refusing(LIVE, ServerError("dead"), 1))
    assert compare_latency("url", LIVE, NEW, ["a shirt"], 2.0) is None
    monkeypatch.setattr(latency, "LEAVING_OUT_SECONDS", 0.05)
    serve(refusing(LIVE, BusyError("full"), *range(3, 1_000_000)))
    assert compare_latency("url", LIVE, NEW, ["a shirt"], 2.0) is None


def test_a_new_release_that_fails_or_refuses_for_long_is_told(serve: Callable[[Server], dict[str, int]]) -> None:
    serve(refusing(NEW, ServerError("does not answer"), 4))
    with pytest.raises(ServerError, match="shop_candidate does not answer"):
        compare_latency("url", LIVE, NEW, ["a shirt"], 2.0)
    serve(refusing(NEW, BusyError("does not answer: full"), *range(1, 1_000_000)))
    with pytest.raises(BusyError, match="shop_candidate does not answer: full"):
        compare_latency("url", LIVE, NEW, ["a shirt"], 2.0)


def test_the_gate_refuses_a_slow_release_on_a_busy_server(
    serve: Callable[[Server], dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(refusing(LIVE, BusyError("full"), 4))
    monkeypatch.setattr(gates, "candidate", lambda *_: nullcontext(NEW))
    live, newer = (build_release(tmp_path, number, {"topk": (number, "t")}) for number in (1, 2))
    with pytest.raises(GateError, match=r"gate `latency`: an answer takes 3\.00 times"):
        Gates(GateSettings()).check_answers(None, "url", newer, live)


def test_first_answers_are_asked_for_again_where_they_are_refused(
    serve: Callable[[Server], dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(refusing(NEW, BusyError("full"), 1, 2))
    monkeypatch.setattr(candidate, "candidate", lambda *_: nullcontext(NEW))
    candidate.answer_beforehand(None, build_release(tmp_path, 1, {"topk": (1, "t")}))
    assert asked[NEW] == 3
