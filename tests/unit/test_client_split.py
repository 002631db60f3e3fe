"""Who is answered by the canary, and that nobody is left without an answer for it."""

import asyncio
import hashlib
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import (
    AsyncCanarySplit,
    AsyncClient,
    CanarySplit,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Recommendations,
    ServerError,
    ServerUnavailable,
)
from instructrec_client._split import SplitState, falls_to_canary, read_state

ALL = [f"user-{number}" for number in range(4_000)]
people = st.text(min_size=1, max_size=40)
shares = st.floats(0, 1)


@given(people, shares, shares)
def test_who_is_in_a_share_is_in_every_larger_one(user: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert falls_to_canary(user, "shop", "7", small) <= falls_to_canary(user, "shop", "7", large)


@given(people)
def test_nobody_is_in_none_and_everybody_in_all(user: str) -> None:
    assert not falls_to_canary(user, "shop", "7", 0.0)
    assert falls_to_canary(user, "shop", "7", 1.0)
    assert not falls_to_canary("", "shop", "7", 1.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_what_was_asked_for(share: float) -> None:
    chosen = sum(falls_to_canary(user, "shop", "7", share) for user in ALL)
    assert abs(chosen / len(ALL) - share) < 4 * (share * (1 - share) / len(ALL)) ** 0.5


def test_the_choice_is_the_same_in_all_versions() -> None:
    """Written down: another formula would move people in the middle of an experiment."""
    drawn = hashlib.sha256(b"shop\x007\0user-1").digest()
    edge = int.from_bytes(drawn[:8], "big") / 2**64
    assert edge == pytest.approx(0.925437340813855, abs=1e-12)
    assert not falls_to_canary("user-1", "shop", "7", edge - 1e-9)
    assert falls_to_canary("user-1", "shop", "7", edge + 1e-9)


def test_another_release_draws_other_people() -> None:
    seventh, eighth = ({user for user in ALL if falls_to_canary(user, "shop", name, 0.2)} for name in ("7", "8"))
    assert abs(len(seventh & eighth) / len(ALL) - 0.04) < 0.015


@given(st.floats())
def test_a_published_share_is_never_beyond_all(share: float) -> None:
    assert 0 <= read_state("7", {"canary_share": repr(share)}).share <= 1


class Wire:
    """Stands in for the calls of both clients: what the live release and the canary answer, and what is published."""

    def __init__(self, canary: Any = None, share: str | None = "1.0") -> None:
        self.canary, self.share, self.asked = canary, share, 0
        self.seen: list[str] = []

    def recommend(self, domain: str) -> Recommendations:
        self.seen.append(domain)
        if domain.endswith("_canary") and isinstance(self.canary, BaseException):
            raise self.canary
        return Recommendations((), release="7" if domain.endswith("_canary") else "6", model_version="")

    def parameters(self) -> tuple[str, dict[str, str]]:
        self.asked += 1
        if self.share is None:
            raise ModelNotFound("no canary")
        return "7", {"canary_share": self.share}


@contextmanager
def wired(wire: Wire) -> Iterator[None]:
    async def recommend(client: AsyncClient, *_: Any, **__: Any) -> Recommendations:
        return wire.recommend(client.domain)

    async def parameters(_: AsyncClient, __: float) -> tuple[str, dict[str, str]]:
        return wire.parameters()

    with (
        patch.object(Client, "recommend", lambda client, *_, **__: wire.recommend(client.domain)),
        patch.object(Client, "_model_parameters", lambda *_: wire.parameters()),
        patch.object(AsyncClient, "recommend", recommend),
        patch.object(AsyncClient, "_model_parameters", parameters),
    ):
        yield


def ask(wire: Wire, times: int = 3, **settings: Any) -> tuple[list[str], Any]:
    """Ask both kinds of split, which have to agree."""

    async def awaited() -> tuple[list[str], Any]:
        async with AsyncClient() as client, AsyncCanarySplit(client, **settings) as split:
            answers = [await split.recommend("a shirt", user_id="anna") for _ in range(times)]
            await asyncio.sleep(0)
            return [one.release for one in answers], split.counts

    with wired(wire), Client() as client, CanarySplit(client, **settings) as split:
        blocking = [split.recommend("a shirt", user_id="anna").release for _ in range(times)], split.counts
        assert asyncio.run(awaited()) == blocking
    return blocking


@pytest.mark.parametrize(
    "failure", [ModelNotFound("gone"), ServerUnavailable("away"), ServerError("broken"), DeadlineExceeded("hangs")]
)
def test_the_live_release_answers_where_the_canary_does_not(failure: Exception) -> None:
    releases, counts = ask(Wire(failure))
    assert releases == ["6", "6", "6"]
    assert counts.canary == 0
    # One that is gone is not tried again before the server is asked anew; one that fails is.
    assert (counts.fallback, counts.live) == ((1, 2) if isinstance(failure, ModelNotFound) else (3, 0))


def test_a_request_that_is_wrong_is_wrong_for_both() -> None:
    with pytest.raises(InvalidRequest):
        ask(Wire(InvalidRequest("blank")))


def test_the_canary_answers_its_people_and_the_servers_word_counts() -> None:
    assert ask(Wire())[0] == ["7", "7", "7"]
    assert ask(Wire(share="0.0"))[0] == ["6", "6", "6"]
    assert ask(Wire(share=None))[0] == ["6", "6", "6"]
    assert ask(Wire(share="0.0"), share=1.0)[0] == ["7", "7", "7"], "the caller's own share goes before"
    assert ask(Wire(share="no number"))[0] == ["6", "6", "6"]


def test_the_server_is_asked_once_a_minute() -> None:
    now = [0.0]
    state = SplitState("shop", None, 60.0, clock=lambda: now[0])
    assert [state.has_to_ask() for _ in range(3)] == [True, False, False]
    now[0] = 61.0
    assert [state.has_to_ask() for _ in range(3)] == [True, False, False]


def test_a_shadow_is_never_waited_for_and_dropped_when_too_many_are_on_their_way() -> None:
    wire, hold = Wire(share="0.0"), threading.Event()
    answer = wire.recommend

    def slow(domain: str) -> Recommendations:
        if domain.endswith("_canary"):
            assert hold.wait(20)
        return answer(domain)

    wire.recommend = slow  # type: ignore[method-assign]
    with wired(wire), Client() as client, CanarySplit(client, shadow=True) as split:
        releases = [split.recommend("a shirt", user_id="anna").release for _ in range(10)]
        assert releases == ["6"] * 10
        assert split.counts.shadow_dropped == 6
        hold.set()
        assert split._pool is not None
        split._pool.shutdown(wait=True)
        assert (split.counts.shadow, split.counts.live) == (4, 10)


def test_a_shadow_that_fails_is_counted_and_nothing_else() -> None:
    releases, _ = ask(Wire(ServerError("broken"), share="0.0"), times=1, shadow=True)
    assert releases == ["6"]


def test_settings_that_make_no_sense_are_refused_and_twins_agree() -> None:
    with Client() as client:
        for wrong in ({"share": 1.5}, {"share": -0.1}, {"refresh": 0.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                CanarySplit(client, **wrong)  # type: ignore[arg-type]
    for name in ("recommend", "close"):
        assert inspect.signature(getattr(CanarySplit, name)) == inspect.signature(getattr(AsyncCanarySplit, name))
