"""Open-loop load: latency counts from the moment a request was due."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instructrec_client import InvalidRequest, QueueFull

from loadtest.open_loop import arrivals, run_open_loop
from loadtest.workload import WrongAnswer


def run(send, **keywords):
    return asyncio.run(run_open_loop(send, **{"rate": 100, "duration_s": 0.3, **keywords}))


async def steady(_):
    await asyncio.sleep(0.02)
    return "1"


def test_a_slow_server_makes_latencies_grow_with_the_backlog():
    # One at a time and 20 ms each: half of what arrives. So the last one waits about as long as the run lasts.
    summary = run(steady, most_under_way=1)
    assert summary.failures == summary.dropped == 0
    assert summary.sent == summary.scheduled
    assert summary.max_ms > 150
    assert summary.late > summary.sent / 2
    assert summary.p50_ms > 40
    assert summary.duration_s > 0.4


def test_a_server_that_keeps_up_shows_its_own_latency():
    summary = run(steady)
    assert 20 <= summary.p50_ms < run(steady, most_under_way=1).p50_ms
    assert summary.releases == {"1": summary.scheduled}


def test_failures_are_counted_by_reason():
    faults = [QueueFull("full"), InvalidRequest("no"), WrongAnswer("a score is above the one before it")]

    async def sometimes(number):
        if number % 4:
            raise faults[number % 4 - 1]
        return "2"

    summary = run(sometimes)
    assert summary.requests == summary.sent == summary.scheduled
    assert sum(summary.errors.values()) == summary.failures == summary.scheduled - summary.releases["2"]
    assert set(summary.errors) == {
        "QueueFull: full",
        "InvalidRequest: no",
        "WrongAnswer: a score is above the one before it",
    }


def test_what_could_not_be_sent_in_time_is_dropped_and_fails():
    async def stuck(_):
        await asyncio.sleep(0.5)
        return "1"

    summary = run(stuck, most_under_way=2, overtime_s=0.05)
    assert summary.sent == 2
    assert summary.dropped == summary.scheduled - 2 == summary.failures
    assert summary.error_rate == pytest.approx(summary.dropped / summary.scheduled)


def test_a_fault_of_our_own_is_not_counted_as_the_servers():
    async def broken(_):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run(broken)


def test_requests_are_numbered_in_turn_and_progress_is_told():
    numbers, ticks = [], []

    async def noting(number):
        numbers.append(number)
        return "1"

    summary = run(noting, progress=lambda: ticks.append(1))
    assert numbers == list(range(summary.scheduled))
    assert len(ticks) == summary.scheduled


@settings(max_examples=25)
@given(st.floats(1, 300), st.floats(0.5, 20), st.integers(0, 1000))
def test_arrivals_are_ordered_inside_the_run_and_repeatable(rate, duration_s, seed):
    moments = arrivals(rate, duration_s, seed)
    assert moments == sorted(moments) == arrivals(rate, duration_s, seed)
    assert all(0 < moment < duration_s for moment in moments)
    # Six standard deviations of a Poisson count.
    assert abs(len(moments) - rate * duration_s) <= 6 * np.sqrt(rate * duration_s) + 6


def test_arrivals_are_as_random_as_a_poisson_process():
    gaps = np.diff(arrivals(100, 100))
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)
