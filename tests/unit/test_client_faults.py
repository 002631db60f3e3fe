"""Retries, deadlines and error types, against a gRPC server that fails on command.

The server speaks the real protocol and plays no model: it exists to provoke what a healthy server does not do.
"""

import asyncio
import inspect
import os
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from client_helpers import (
    CANCELLED,
    HOLD,
    PATIENCE,
    QUEUE_FULL,
    UNAVAILABLE,
    UNLOADED,
    awaited,
    blocking,
    one_item,
    serving,
)
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import (
    AsyncClient,
    Client,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnloaded,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerUnavailable,
    Timeout,
)
from instructrec_client.__main__ import main
from instructrec_client._retry import FIRST_PAUSE, LONGEST_PAUSE, Attempts
from instructrec_client._timeout import Deadline
from tritonclient.grpc import service_pb2

both = pytest.mark.parametrize("ask", [blocking, awaited])


@both
@pytest.mark.parametrize("fault", [UNAVAILABLE, QUEUE_FULL, UNLOADED])
def test_an_unavailable_server_is_asked_again(ask, fault):
    with serving(fault, fault) as (playing, url):
        assert ask(url)[0].item_id == "item_id"
    assert len(playing.seconds_left) == 3


@both
def test_one_deadline_covers_all_attempts(ask):
    with serving(UNAVAILABLE, UNAVAILABLE) as (playing, url):
        ask(url, timeout=20.0)
    # Compared in what the server was told: gRPC rounds the deadline that it sends itself.
    first, second, third = playing.server_timeouts
    assert 20e6 >= first > second > third > 10e6
    assert first - second >= FIRST_PAUSE / 2 * 1e6
    assert second - third >= FIRST_PAUSE * 1e6
    assert max(playing.seconds_left) < 20.1


@both
def test_the_server_is_told_the_time_left_in_microseconds(ask):
    with serving() as (playing, url):
        ask(url, timeout=Timeout(30))
        ask(url)
    assert 25e6 < playing.server_timeouts[0] <= 30e6
    assert 1 < playing.seconds_left[1] < 5.1
    assert 1e6 < playing.server_timeouts[1] <= 5e6


@both
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (UNAVAILABLE, ServerUnavailable),
        (CANCELLED, ServerUnavailable),
        (QUEUE_FULL, QueueFull),
        (UNLOADED, ModelUnloaded),
    ],
)
def test_retries_end(ask, fault, error):
    with serving(*[fault] * 9) as (playing, url), pytest.raises(error) as raised:
        ask(url, settings={"retries": 1})
    assert type(raised.value) is error
    assert url in str(raised.value)
    assert len(playing.seconds_left) == 2


@both
@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", ModelNotFound),
        ("INTERNAL", ServerError),
        ("UNKNOWN", ServerError),
        ("UNIMPLEMENTED", ServerError),
        ("RESOURCE_EXHAUSTED", ServerError),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
    ],
)
def test_every_other_status_is_final_and_typed(ask, status, error):
    with serving((grpc.StatusCode[status], "the detail")) as (playing, url), pytest.raises(error) as raised:
        ask(url)
    assert type(raised.value) is error
    assert error is DeadlineExceeded or "the detail" in str(raised.value)
    assert len(playing.seconds_left) == 1


@both
def test_a_slow_server_ends_in_deadline_exceeded(ask):
    with serving(HOLD) as (playing, url):
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.2 s"):
            ask(url, timeout=0.2)
        assert not playing.over.is_set()
    assert len(playing.rows) <= 1


@both
def test_a_deadline_that_would_pass_in_a_pause_ends_the_call_at_once(ask):
    with serving(*[UNAVAILABLE] * 1000) as (playing, url), pytest.raises(DeadlineExceeded) as raised:
        ask(url, settings={"retries": 1000}, timeout=0.6)
    assert isinstance(raised.value.__cause__, ServerUnavailable)
    assert f"no answer within 0.6 s: {url} is unavailable (going away)" in str(raised.value)
    assert 2 <= len(playing.seconds_left) <= 10


@both
@pytest.mark.parametrize("timeout", [0.05, 0.1])
def test_with_little_time_the_error_still_names_the_server(ask, timeout):
    with pytest.raises(DeadlineExceeded, match=r"127\.0\.0\.1:1"):
        ask("127.0.0.1:1", settings={"retries": 1000}, timeout=timeout)


@both
def test_a_server_that_is_silent_after_it_was_unavailable_is_named(ask):
    with serving(UNAVAILABLE, HOLD) as (_, url), pytest.raises(DeadlineExceeded, match=f"{url} is unavailable"):
        ask(url, timeout=0.5)


@both
def test_nobody_listens(ask):
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 is unavailable .*check the address"):
        ask("127.0.0.1:1", timeout=PATIENCE)


@both
def test_an_answer_that_breaks_the_contract_is_not_asked_for_again(ask):
    with (
        serving(service_pb2.ModelInferResponse()) as (playing, url),
        pytest.raises(ProtocolError, match="lacks output"),
    ):
        ask(url)
    assert len(playing.rows) == 1


@both
def test_a_request_too_large_to_send_is_an_invalid_request(ask):
    settings = {"channel_args": [("grpc.max_send_message_length", 1000)]}
    with serving() as (playing, url), pytest.raises(InvalidRequest, match="too large to send"):
        ask(url, argument="x" * 2000, settings=settings)
    assert playing.rows == []


@both
def test_a_large_batch_travels_in_several_requests_under_one_deadline(ask):
    with serving(0.2, 0.2) as (playing, url):
        assert len(ask(url, "recommend_batch", ["a shirt"] * 70, timeout=30)) == 70
    assert playing.rows == [32, 32, 6]
    assert playing.server_timeouts[2] < playing.server_timeouts[0] - 0.4e6


@both
def test_any_sequence_is_sent_a_deque_too(ask):
    with serving() as (playing, url):
        histories = deque(deque(["sku-1"]) for _ in range(40))
        assert len(ask(url, "recommend_batch", deque(["a shirt"] * 40), histories=histories)) == 40
    assert playing.rows == [32, 8]


@both
def test_each_request_of_a_batch_has_retries_of_its_own(ask):
    with serving(UNAVAILABLE, 0, UNAVAILABLE) as (playing, url):
        assert len(ask(url, "recommend_batch", ["a shirt"] * 64, settings={"retries": 1})) == 64
    assert playing.rows == [32, 32, 32, 32]


@both
def test_ready_follows_the_server(ask):
    with serving() as (playing, url):
        assert ask(url, "ready", None) is True
        playing.ready = False
        assert ask(url, "ready", None) is False
        playing.ready = UNAVAILABLE
        assert ask(url, "ready", None) is False
        playing.ready = (grpc.StatusCode.INTERNAL, "broken")
        with pytest.raises(ServerError, match="broken"):
            ask(url, "ready", None)
    assert ask(url, "ready", None, timeout=1) is False


def test_a_closed_client_says_so():
    client = Client("127.0.0.1:1")
    client.close()
    client.close()
    for call in (lambda: client.recommend("a shirt"), client.ready, client.__enter__):
        with pytest.raises(ClientClosed, match="make a new one"):
            call()


def test_closing_ends_calls_under_way():
    with serving(HOLD) as (playing, url), ThreadPoolExecutor(1) as pool:
        client = Client(url, timeout=PATIENCE)
        under_way = pool.submit(client.recommend, "a shirt")
        assert playing.entered.wait(PATIENCE)
        client.close()
        with pytest.raises(ClientClosed):
            under_way.result()
        assert not playing.over.is_set()


def test_closing_ends_awaited_calls_under_way():
    async def scenario(playing, url):
        client = AsyncClient(url, timeout=PATIENCE)
        under_way = asyncio.create_task(client.recommend("a shirt"))
        assert await asyncio.to_thread(playing.entered.wait, PATIENCE)
        await client.close()
        with pytest.raises(ClientClosed):
            await under_way
        assert not playing.over.is_set()

    with serving(HOLD) as (playing, url):
        asyncio.run(scenario(playing, url))


def test_a_cancelled_task_stays_cancelled():
    async def scenario(playing, url):
        async with AsyncClient(url, timeout=PATIENCE) as client:
            under_way = asyncio.create_task(client.recommend("a shirt"))
            assert await asyncio.to_thread(playing.entered.wait, PATIENCE)
            under_way.cancel()
            with pytest.raises(asyncio.CancelledError):
                await under_way

    with serving(HOLD) as (playing, url):
        asyncio.run(scenario(playing, url))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not tell whether it was cancelled")
def test_a_task_that_is_cancelled_while_its_client_closes_stays_cancelled():
    async def scenario(playing, url):
        client = AsyncClient(url, timeout=PATIENCE)
        under_way = asyncio.create_task(client.recommend("a shirt"))
        assert await asyncio.to_thread(playing.entered.wait, PATIENCE)
        under_way.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await under_way

    with serving(HOLD) as (playing, url):
        asyncio.run(scenario(playing, url))


@pytest.mark.parametrize(("options", "shown"), [([], "p\\xe9"), (["--json"], "p\\u00e9")])
def test_a_terminal_without_the_letters_gets_escapes(options, shown):
    with serving(one_item(1, "p\u00e9")) as (_, url):
        command = [sys.executable, "-m", "instructrec_client", "a shirt", "--url", url, *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_an_error_of_several_lines_is_shown_in_one(capsys):
    with serving((grpc.StatusCode.INTERNAL, "it failed\nat step 2")) as (_, url):
        assert main(["a shirt", "--url", url]) == 1
    shown = capsys.readouterr().err
    assert "it failed at step 2" in shown
    assert shown.count("\n") == 1


def test_the_command_lines_deadline_is_of_all_that_it_does():
    with serving() as (playing, url):
        playing.ready_after = 2.0
        assert main(["a shirt", "--url", url, "--timeout", "60"]) == 0
    assert playing.server_timeouts[0] <= 58e6


class Clock:
    """A clock that only moves when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


FAULTS = st.sampled_from(
    [ServerUnavailable("x"), QueueFull("x"), ServerError("x"), InvalidRequest("x"), ModelNotFound("x")]
)


@given(st.floats(0.01, 30), st.integers(0, 12), st.lists(st.tuples(FAULTS, st.floats(0, 2)), max_size=20), st.randoms())
def test_no_sequence_of_faults_outlives_the_deadline_or_the_retries(total, retries, faults, random):
    clock = Clock()
    attempts = Attempts(Deadline(Timeout(total), clock), retries, random.uniform)
    pauses = 0
    for fault, seconds in faults:
        clock.now += seconds
        try:
            pause = attempts.pause_after(fault)
        except DeadlineExceeded as error:
            assert error.__cause__ is fault
            assert clock.now + LONGEST_PAUSE >= 100.0 + total
            return
        except type(fault):
            assert pauses == retries or not isinstance(fault, ServerUnavailable)
            return
        assert isinstance(fault, ServerUnavailable)
        assert 0 < pause <= LONGEST_PAUSE
        clock.now += pause
        assert clock.now <= 100.0 + total  # equal where the sum is rounded; the pause is the smaller one
        pauses += 1
    assert pauses <= retries


def test_pauses_grow_and_are_jittered():
    def pauses(choose):
        attempts = Attempts(Deadline(Timeout(100)), 7, choose)
        return [attempts.pause_after(ServerUnavailable("x")) for _ in range(7)]

    assert pauses(lambda _, high: high) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert pauses(lambda low, _: low) == [0.025, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_the_default_bridges_a_moment_and_twenty_retries_a_restart():
    """What README.md says of both."""

    def waited(retries, choose):
        attempts = Attempts(Deadline(Timeout(100)), retries, choose)
        return sum(attempts.pause_after(ServerUnavailable("x")) for _ in range(retries))

    default = inspect.signature(Client.__init__).parameters["retries"].default
    assert waited(default, min) == pytest.approx(0.075)
    assert waited(default, max) == pytest.approx(0.15)
    assert waited(20, min) == pytest.approx(8.275)
    assert waited(20, max) == pytest.approx(16.55)
