"""Who is answered by the canary, and that nobody is left without an answer for it."""

import asyncio
import hashlib
import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    InstructRecError,
    InvalidRequest,
    ModelNotFound,
    ModelUnloaded,
    Recommendations,
    ServerError,
    ServerUnavailable,
)
from instructrec_client._split import SplitCounts, SplitState, falls_to_canary, read_state

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
        self.given: list[float] = []
        self.slowness = 0.0
        self.gone: InstructRecError = ModelNotFound("no canary")

    def recommend(self, domain: str) -> Recommendations:
        self.seen.append(domain)
        if domain.endswith("_canary") and isinstance(self.canary, BaseException):
            raise self.canary
        return Recommendations((), release="7" if domain.endswith("_canary") else "6", model_version="")

    def parameters(self, seconds: float) -> tuple[str, dict[str, str]]:
        self.asked += 1
        self.given.append(seconds)
        if self.slowness > seconds:
            raise DeadlineExceeded("the look-up is late")
        if self.share is None:
            raise self.gone
        return "7", {"canary_share": self.share}


@contextmanager
def wired(wire: Wire) -> Iterator[None]:
    async def recommend(client: AsyncClient, *_: Any, **__: Any) -> Recommendations:
        return wire.recommend(client.domain)

    async def awaited_parameters(_: AsyncClient, seconds: float) -> tuple[str, dict[str, str]]:
        await asyncio.sleep(min(seconds, wire.slowness))
        return wire.parameters(seconds)

    def parameters(_: Client, seconds: float) -> tuple[str, dict[str, str]]:
        time.sleep(min(seconds, wire.slowness))
        return wire.parameters(seconds)

    with (
        patch.object(Client, "recommend", lambda client, *_, **__: wire.recommend(client.domain)),
        patch.object(Client, "_model_parameters", parameters),
        patch.object(AsyncClient, "recommend", recommend),
        patch.object(AsyncClient, "_model_parameters", awaited_parameters),
    ):
        yield


def ask(wire: Wire, times: int = 3, user_id: Any = "anna", **settings: Any) -> tuple[list[str], Any]:
    """Ask both kinds of split, which have to agree, and wait for their shadows."""

    async def awaited() -> tuple[list[str], Any]:
        async with AsyncClient() as client, AsyncCanarySplit(client, **settings) as split:
            answers = [await split.recommend("a shirt", user_id=user_id) for _ in range(times)]
            await asyncio.gather(*split._shadows)
            return [one.release for one in answers], split.counts

    with wired(wire), Client() as client, CanarySplit(client, **settings) as split:
        releases = [split.recommend("a shirt", user_id=user_id).release for _ in range(times)]
        if split._pool is not None:
            split._pool.shutdown(wait=True)
        assert asyncio.run(awaited()) == (releases, split.counts)
        return releases, split.counts


@pytest.mark.parametrize(
    "failure",
    [
        ModelNotFound("gone"),
        ModelUnloaded("taken down"),
        ServerUnavailable("away"),
        ServerError("broken"),
        DeadlineExceeded("hangs"),
    ],
)
def test_the_live_release_answers_where_the_canary_does_not(failure: Exception) -> None:
    releases, counts = ask(Wire(failure))
    assert releases == ["6", "6", "6"]
    assert counts.canary == 0
    # One that is gone is not tried again before the server is asked anew; one that fails is.
    assert (counts.fallback, counts.live) == ((1, 2) if isinstance(failure, (ModelNotFound, ModelUnloaded)) else (3, 0))


def test_a_request_that_is_wrong_is_wrong_for_both() -> None:
    with pytest.raises(InvalidRequest):
        ask(Wire(InvalidRequest("blank")))


def test_the_canary_answers_its_people_and_the_servers_word_counts() -> None:
    assert ask(Wire())[0] == ["7", "7", "7"]
    assert ask(Wire(share="0.0"))[0] == ["6", "6", "6"]
    assert ask(Wire(share=None))[0] == ["6", "6", "6"]
    assert ask(Wire(share="0.0"), share=1.0)[0] == ["7", "7", "7"], "the caller's own share goes before"
    assert ask(Wire(share="no number"))[0] == ["6", "6", "6"]


@pytest.mark.parametrize("gone", [ModelNotFound("never there"), ModelUnloaded("taken down")])
def test_a_canary_that_was_taken_down_is_one_no_more(gone: InstructRecError) -> None:
    wire = Wire()
    with wired(wire), Client() as client, CanarySplit(client, refresh=1e-9) as split:
        assert split.recommend("a shirt", user_id="anna").release == "7"
        wire.share, wire.gone = None, gone
        assert split.recommend("a shirt", user_id="anna").release == "6"
        assert split.canary is None

    async def awaited() -> None:
        async with AsyncClient() as client, AsyncCanarySplit(client, refresh=1e-9) as split:
            assert (await split.recommend("a shirt", user_id="anna")).release == "7"
            wire.share = None
            assert (await split.recommend("a shirt", user_id="anna")).release == "6"
            assert split.canary is None

    wire.share = "1.0"
    with wired(wire):
        asyncio.run(awaited())


def test_the_server_is_asked_once_a_minute() -> None:
    now = [0.0]
    state = SplitState("shop", None, 60.0, clock=lambda: now[0])
    for moment in (0.0, 61.0):
        now[0] = moment
        assert [state.has_to_ask() for _ in range(3)] == [True, False, False]
        state.learn(None)
        now[0] = moment + 59.0
        assert not state.has_to_ask()


def test_a_look_up_that_ended_in_nothing_is_repeated_soon() -> None:
    now = [0.0]
    state = SplitState("shop", None, 60.0, clock=lambda: now[0])
    assert state.has_to_ask()
    now[0] = 1.5
    assert state.has_to_ask()


def test_a_look_up_leaves_a_call_most_of_its_time_and_may_come_late() -> None:
    wire = Wire()
    wire.slowness = 0.5
    with wired(wire), Client(timeout=0.5) as client, CanarySplit(client) as split:
        assert split.recommend("a shirt", user_id="anna").release == "6"
        assert split.recommend("a shirt", user_id="anna", timeout=20).release == "6", "nobody asks again at once"
    assert len(wire.given) == 1

    async def awaited() -> str:
        async with AsyncClient(timeout=0.5) as client, AsyncCanarySplit(client) as split:
            return (await split.recommend("a shirt", user_id="anna")).release

    with wired(wire):
        assert asyncio.run(awaited()) == "6"
    assert len(wire.given) == 2
    assert all(0 < seconds <= 0.1 for seconds in wire.given)


def test_calls_wait_for_the_first_look_up_so_that_a_person_stays_on_one_side() -> None:
    wire = Wire()
    wire.slowness = 0.1
    with wired(wire), Client() as client, CanarySplit(client) as split, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: split.recommend("a shirt", user_id="anna").release, range(4))
        assert list(answers) == ["7"] * 4
    assert wire.asked == 1

    async def awaited() -> list[str]:
        async with AsyncClient() as client, AsyncCanarySplit(client) as split:
            answers = await asyncio.gather(*(split.recommend("a shirt", user_id="anna") for _ in range(4)))
            return [one.release for one in answers]

    with wired(wire):
        assert asyncio.run(awaited()) == ["7"] * 4
    assert wire.asked == 2


async def test_the_look_up_of_a_cancelled_task_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_client._split.ASKING_SECONDS", 0.0)  # after which another call asks
    wire = Wire()
    wire.slowness = 0.2
    with wired(wire):
        async with AsyncClient() as client, AsyncCanarySplit(client) as split:
            first = asyncio.create_task(split.recommend("a shirt", user_id="anna"))
            await asyncio.sleep(0.01)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert (await split.recommend("a shirt", user_id="anna")).release == "7"


@pytest.mark.parametrize("share", [None, "1.0"])
@pytest.mark.parametrize("user_id", [17, None, b"anna", "\ud800"])
def test_a_wrong_user_id_is_one_with_and_without_a_canary(user_id: Any, share: str | None) -> None:
    wire = Wire(share=share)
    with pytest.raises(InvalidRequest, match="the user_id"):
        ask(wire, user_id=user_id)

    async def awaited() -> None:
        async with AsyncClient() as client, AsyncCanarySplit(client) as split:
            await split.recommend("a shirt", user_id=user_id)

    with wired(wire), pytest.raises(InvalidRequest, match="the user_id"):
        asyncio.run(awaited())
    assert wire.seen == []


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
    releases, counts = ask(Wire(ServerError("broken"), share="0.0"), times=1, shadow=True)
    assert releases == ["6"]
    assert counts == SplitCounts(live=1, shadow_failed=1)


def test_a_split_that_is_closed_by_another_thread_still_answers() -> None:
    wire = Wire(share="0.0")
    with wired(wire), Client() as client, CanarySplit(client, shadow=True) as split:
        split.recommend("a shirt", user_id="anna")
        split.close()
        assert split.recommend("a shirt", user_id="anna").release == "6"
        assert (split.counts.live, split.counts.shadow_dropped) == (2, 1)


def test_settings_that_make_no_sense_are_refused_and_twins_agree() -> None:
    with Client() as client:
        for wrong in ({"share": 1.5}, {"share": -0.1}, {"refresh": 0.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                CanarySplit(client, **wrong)  # type: ignore[arg-type]
    for name in ("recommend", "close"):
        assert inspect.signature(getattr(CanarySplit, name)) == inspect.signature(getattr(AsyncCanarySplit, name))
