"""The resident loop: when it tunes, what it does with what comes of it, and how it stops."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from continual_helpers import Shop

from continual import follow as follow_module
from continual.follow import Follower
from feedback.location import Location
from serving.errors import GateError, PublishError, ServerError
from serving.gates.gates import Gates
from serving.gates.settings import GateSettings
from serving.releases import Release
from training.derived_run import derive_run


@pytest.fixture
def published(taught_shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[int]:
    """The releases that were made live, on a server that is only said to run."""
    found: list[int] = []
    taught_shop.make_live(taught_shop.release, monkeypatch)

    def deploy(
        _layout: object,
        release: Release,
        _endpoints: object,
        *,
        gates: Gates,
        verb: str,
        patience_seconds: float,
        check: Callable[[], None],
    ) -> SimpleNamespace:
        assert patience_seconds > 0, "the watcher may be at work"
        assert verb == "follow"
        check()
        found.append(release.number)
        taught_shop.make_live(release, monkeypatch)
        return SimpleNamespace(release=release.number, switch_seconds=0.1, warnings=())

    monkeypatch.setattr("continual.follow.deploy", deploy)
    monkeypatch.setattr("continual.follow.Server.state", lambda _: SimpleNamespace(endpoints=None))
    monkeypatch.setattr("continual.follow.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("continual.follow.REST_SECONDS", 0.05)
    caplog.set_level(logging.INFO, logger="continual")
    return found


def follow(shop: Shop, until: Callable[[], bool], *, every: float | None = None, events: int | None = None) -> None:
    """Follow until something is so, then send the signal that a person's Ctrl-C or a service manager sends."""

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    follower = Follower(shop.tuner(), every, events, GateSettings())

    def so() -> bool:  # not before the signal is looked after
        return signal.getsignal(signal.SIGTERM) == follower._asked_to_stop and until()

    watcher = threading.Thread(target=stop_when, args=(so,))
    watcher.start()
    try:
        follower.run()
    finally:
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_when(so: Callable[[], bool]) -> None:
    """Send SIGTERM to this process once something is so, or a minute is over."""
    deadline = time.monotonic() + 60
    while not so() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_enough_events_make_a_release_live(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    taught_shop.send(30, "drip", "id-shoe1")
    follow(taught_shop, lambda: bool(published), events=30)
    assert published == [2]
    assert "release 2 answers, switched in 0.10 s" in caplog.text
    assert caplog.messages[-1] == "stopped"


def test_too_few_events_wait(taught_shop: Shop, published: list[int]) -> None:
    taught_shop.send(30, "drip", "id-shoe1")
    looked = time.monotonic()
    follow(taught_shop, lambda: time.monotonic() > looked + 1, events=31)
    assert published == []


def test_what_was_made_of_a_release_that_no_longer_answers_is_not_published(
    taught_shop: Shop, published: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taught_shop.send(30, "drip", "id-shoe1")
    tuner = taught_shop.tuner()
    turn = tuner.turn
    weight, bias = taught_shop.run.head()

    def overtaken(since: int | None = None) -> Any:
        """While the turn goes on, somebody makes another release live."""
        made = turn(since)
        if made.release is not None and made.release.number == 2:
            other = derive_run(taught_shop.run, taught_shop.var, reason="other", head=(weight, bias + 0.1))
            taught_shop.make_live(taught_shop.export(other), monkeypatch)
        return made

    tuner.turn = overtaken  # type: ignore[method-assign]
    taught_shop.tuner = lambda: tuner  # type: ignore[method-assign]
    follow(taught_shop, lambda: bool(published), events=30)
    assert "it was made to follow release 1, but release 3 is live by now: it was left alone" in caplog.text
    assert published == [4], "made anew, of what answers now"


def test_a_week_of_failures_does_not_end_it(taught_shop: Shop) -> None:
    follower = Follower(taught_shop.tuner(), 1, None, GateSettings())
    rests = []
    for failed in (1, 2, 3, 10, 5_000):
        follower._failed = failed
        rests.append(follower._rest())
    assert rests == [10.0, 20.0, 40.0, 600.0, 600.0]


def test_time_alone_makes_it_tune(taught_shop: Shop, published: list[int]) -> None:
    taught_shop.send(30, "drip", "id-shoe1")
    follow(taught_shop, lambda: bool(published), every=1)
    assert published == [2]


@pytest.mark.parametrize("error", [PublishError("release 2 is not live: no memory"), OSError(28, "no memory")])
def test_a_failed_publication_is_logged_and_tried_again_without_new_feedback(
    taught_shop: Shop,
    published: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    works, failures = follow_module.deploy, iter([error, error])

    def fails_twice(*arguments: Any, **options: Any) -> Any:
        if failure := next(failures, None):
            raise failure
        return works(*arguments, **options)

    monkeypatch.setattr("continual.follow.deploy", fails_twice)
    taught_shop.send(30, "drip", "id-shoe1")
    follow(taught_shop, lambda: bool(published), events=30)
    assert published == [2]
    assert caplog.text.count("no memory") == 2
    assert caplog.messages[-1] == "stopped"


def test_what_does_not_pass_a_gate_is_not_tried_again(
    taught_shop: Shop, published: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise GateError("release 2 is not good enough")

    monkeypatch.setattr("continual.follow.deploy", fails)
    taught_shop.send(30, "drip", "id-shoe1")
    follow(taught_shop, lambda: caplog.text.count("which release 2 has learned") == 2, every=0.1)
    assert caplog.text.count("not good enough") == 1


def test_a_full_batch_that_nothing_comes_of_is_read_once(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    for word in ("hat", "shirt"):
        taught_shop.send(60, word, "id-shoe1", person=lambda number: f"person {number}")
    taught_shop.send(60, "drip", "no such item")
    settings = taught_shop.tuner(
        "continual.max_events=120", "continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0"
    )
    taught_shop.tuner = lambda: settings  # type: ignore[method-assign]
    began = time.monotonic()
    follow(taught_shop, lambda: "nothing to learn yet" in caplog.text and time.monotonic() > began + 1, events=30)
    assert sum("events after event" in line for line in taught_shop.lines) == 2


def test_no_feedback_is_no_reason_to_end(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    follow(taught_shop, lambda: "there is no feedback yet" in caplog.text, every=1)
    assert caplog.messages[-1] == "stopped"


def test_a_refusal_is_logged(taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture) -> None:
    for word in ("hat", "shirt"):
        taught_shop.send(60, word, "id-shoe1", person=lambda number: f"person {number}")
    settings = taught_shop.tuner("continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0")
    taught_shop.tuner = lambda: settings  # type: ignore[method-assign]
    follow(taught_shop, lambda: "refused: " in caplog.text, events=60)
    assert published == []


def test_without_a_server_there_is_nothing_to_follow(taught_shop: Shop) -> None:
    with pytest.raises(ServerError, match="no server runs"):
        Follower(taught_shop.tuner(), 1, None, GateSettings()).run()


def test_a_store_that_cannot_be_read_is_said_once(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    url = Location.below(taught_shop.var).url_file
    url.write_text("mysql://shop", encoding="utf-8")
    began = time.monotonic()

    def said_and_changed() -> bool:
        if "names mysql" in caplog.text and time.monotonic() > began + 0.5:
            url.write_text("no address", encoding="utf-8")
        return "is no database URL" in caplog.text

    follow(taught_shop, said_and_changed, events=30)
    assert caplog.text.count("names mysql") == 1
    assert caplog.text.count("is no database URL") == 1


def test_a_store_that_was_replaced_is_said(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(40, "drip", "id-shoe1")
    release = taught_shop.tuner().turn().release
    assert release is not None
    taught_shop.make_live(release, monkeypatch)
    for path in Location.below(taught_shop.var).folder.glob("events.sqlite*"):
        path.unlink()
    taught_shop.send(35, "kicks", "id-shoe1")
    follow(taught_shop, lambda: "was it replaced?" in caplog.text, events=30)
    assert "feedback up to event 40 is learned, but the store ends with event 35: was it replaced?" in caplog.text


def test_another_store_that_nothing_was_learned_from_makes_one_turn(
    taught_shop: Shop, published: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    taught_shop.send(20, "drip", "no such item")
    folder = Location.below(taught_shop.var).folder
    replaced: list[float] = []

    def replaced_and_read() -> bool:
        if not replaced and "20 of items that the catalogue lacks" in caplog.text:
            for path in folder.glob("events.sqlite*"):
                path.unlink()
            taught_shop.send(10, "drip", "no such item")
            replaced.append(time.monotonic())
        return bool(replaced) and time.monotonic() > replaced[0] + 2

    follow(taught_shop, replaced_and_read, events=20)
    assert caplog.text.count("nothing to learn yet (10 of items that the catalogue lacks)") == 1
    assert "up to which nothing came of it" not in caplog.text
