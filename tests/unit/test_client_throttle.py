"""A client that is refused much sends about twice what is accepted, and finds its way back when the server does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
from instructrec_client import AsyncClient, Client, DeadlineExceeded, Feedback, QueueFull, ServerError
from instructrec_client._throttle import Throttle
from test_client_feedback import answer as stored
from tritonclient.grpc import InferResult

QUEUE = 20.0


class Traffic:
    """Requests at a steady rate to a server that answers so many a second, and lets some wait."""

    def __init__(self, seed: int = 0) -> None:
        self.seconds = 0.0
        self.sent = self.asked = 0
        self.throttle = Throttle(random.Random(seed).uniform, lambda: self.seconds)  # noqa: S311 - a seeded generator is the point

    def flow(self, seconds: float, *, rate: float, capacity: float) -> tuple[float, float]:
        """Let requests flow; returns the rate of those sent, and of those answered."""
        sent = answered = 0
        room = QUEUE
        for _ in range(round(seconds * rate)):
            self.seconds += 1 / rate
            room = min(QUEUE, room + capacity / rate)
            with suppress(QueueFull), self.throttle.attempt():
                sent += 1
                if room < 1:
                    raise QueueFull("full")
                room -= 1
                answered += 1
        return sent / seconds, answered / seconds


def test_a_server_that_accepts_everything_gets_everything() -> None:
    assert Traffic().flow(30, rate=100, capacity=1_000) == (100, 100)


@pytest.mark.parametrize("rate", [200, 400, 1_000, 2_000])
def test_under_overload_not_much_more_than_twice_what_is_accepted_is_sent(rate: int) -> None:
    traffic = Traffic()
    traffic.flow(30, rate=rate, capacity=100)
    sent, answered = traffic.flow(30, rate=rate, capacity=100)
    assert 100 < sent < 215
    assert answered > 99


@pytest.mark.parametrize("rate", [10, 50, 200, 1_000, 5_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_refused_everything_gets_everything_soon_after_it_has_room(rate: int, seed: int) -> None:
    traffic = Traffic(seed)
    traffic.flow(30, rate=rate, capacity=0)
    traffic.flow(17, rate=rate, capacity=10_000)
    assert traffic.flow(5, rate=rate, capacity=10_000)[1] >= 0.99 * rate


def test_a_moments_peak_holds_nothing_back() -> None:
    traffic = Traffic()
    assert traffic.flow(0.2, rate=100, capacity=0)[0] == 100
    assert traffic.flow(1, rate=100, capacity=1_000) == (100, 100)


def test_many_requests_at_once_are_no_refused_ones() -> None:
    throttle = Throttle(lambda low, high: low, lambda: 0.0)
    with ExitStack() as under_way:
        for _ in range(1_000):
            under_way.enter_context(throttle.attempt())
    with throttle.attempt():
        pass


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), ValueError("wrong"), KeyboardInterrupt()])
def test_other_errors_hold_nothing_back(error: BaseException) -> None:
    throttle = Throttle(lambda low, high: low, lambda: 0.0)
    for _ in range(1_000):
        with pytest.raises(type(error)), throttle.attempt():
            raise error
    with throttle.attempt():
        pass


def attempts_until_held_back(throttle: Throttle) -> int:
    for number in range(1_000):
        reached: list[Callable[[], None]] = []
        with suppress(QueueFull), throttle.attempt():
            reached.append(lambda: None)
            raise QueueFull("full")
        if not reached:
            return number
    return 1_000


def test_a_held_back_request_never_reaches_the_server_and_says_who_held_it() -> None:
    throttle = Throttle(lambda low, high: low, lambda: 0.0)
    assert attempts_until_held_back(throttle) == 21
    with pytest.raises(QueueFull, match="held back by this client"), throttle.attempt():
        pytest.fail("it was sent")


class FullServer:
    """A connection to a server that refuses everything."""

    def __init__(self) -> None:
        self.asked = 0

    def infer(self, *_: object) -> None:
        self.asked += 1
        raise QueueFull("full")


class FeedbackTaker:
    """A connection to a server that takes every event and recommends to nobody."""

    def __init__(self) -> None:
        self.asked = self.events = 0

    def infer(self, model: str, *_: object) -> InferResult:
        if model == "feedback":
            self.events += 1
            return InferResult(stored(1))
        self.asked += 1
        raise QueueFull("full")


class AsyncFeedbackTaker(FeedbackTaker):
    async def infer(self, *arguments: object) -> InferResult:  # type: ignore[override]
        return super().infer(*arguments)  # type: ignore[arg-type]


class AsyncFullServer(FullServer):
    async def infer(self, *_: object) -> None:  # type: ignore[override]
        super().infer()


class SlowServer:
    """A connection to a server that is busy for a moment, and refuses nothing."""

    async def infer(self, *_: object) -> None:
        await asyncio.sleep(0.05)
        raise ServerError("it answers everybody like this")


async def test_a_burst_reaches_a_server_that_refused_nothing() -> None:
    client = AsyncClient()
    client._transport = SlowServer()  # type: ignore[assignment]
    outcomes = await asyncio.gather(*(client.recommend("a shirt") for _ in range(200)), return_exceptions=True)
    assert {type(one) for one in outcomes} == {ServerError}


async def test_feedback_is_sent_to_a_server_that_refuses_to_recommend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_client._retry.FIRST_PAUSE", 0.0)
    client, server = Client(), FeedbackTaker()
    client._transport = server  # type: ignore[assignment]
    other, other_server = AsyncClient(), AsyncFeedbackTaker()
    other._transport = other_server  # type: ignore[assignment]
    for _ in range(200):
        with pytest.raises(QueueFull):
            client.recommend("a shirt")
        with pytest.raises(QueueFull):
            await other.recommend("a shirt")
        assert client.feedback(Feedback("purchase", "sku-1"))
        assert await other.feedback(Feedback("purchase", "sku-1"))
    assert (server.events, other_server.events) == (200, 200)
    assert server.asked < 400, "of 600: that events are taken does not say that there is room for recommendations"
    assert other_server.asked < 400


@pytest.mark.parametrize(("retries", "fewest", "most"), [(0, 100, 100), (1, 20, 120)])
async def test_both_clients_hold_back_unless_they_are_to_ask_once(
    monkeypatch: pytest.MonkeyPatch, retries: int, fewest: int, most: int
) -> None:
    monkeypatch.setattr("instructrec_client._retry.FIRST_PAUSE", 0.0)
    client, server = Client(retries=retries), FullServer()
    client._transport = server  # type: ignore[assignment]
    other, other_server = AsyncClient(retries=retries), AsyncFullServer()
    other._transport = other_server  # type: ignore[assignment]
    for _ in range(100):
        with pytest.raises(QueueFull):
            client.recommend("a shirt")
        with pytest.raises(QueueFull):
            await other.recommend("a shirt")
    assert fewest <= server.asked <= most
    assert fewest <= other_server.asked <= most
