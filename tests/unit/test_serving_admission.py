"""Requests are refused while too many wait: oldest first, as many as are too many, and none when nothing is known."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from serving_helpers import install_triton

OWN = ("shop_fused", "7")
Version = tuple[str, str]


def metrics(waiting: Mapping[Version, int], taken: Mapping[Version, int] | None = None) -> bytes:
    """What Triton says of requests that wait, and of those that each version has taken."""
    kinds = {"pending_request_count": waiting, "request_success": taken or {}, "count": dict.fromkeys(waiting, 9)}
    return "".join(
        f"# TYPE nv_inference_{kind} gauge\n"
        + "".join(f'nv_inference_{kind}{{model="{one}",version="{version}"}} {n}\n' for (one, version), n in of.items())
        for kind, of in kinds.items()
    ).encode()


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delitem(sys.modules, "serving.steps.admission", raising=False)
    return install_triton(monkeypatch)


@pytest.fixture
def admission(triton: Any) -> ModuleType:
    return importlib.import_module("serving.steps.admission")


class Waiting:
    """A queue whose length a test sets, and a clock that it moves."""

    def __init__(self, counts: list[int | OSError]) -> None:
        self.counts, self.seconds, self.asked = counts, 0.0, 0

    def read(self) -> bytes:
        count = self.counts[min(self.asked, len(self.counts) - 1)]
        self.asked += 1
        if isinstance(count, OSError):
            raise count
        return metrics({OWN: count})

    def clock(self) -> float:
        return self.seconds


def gate(admission: ModuleType, waiting: Waiting, most: int) -> Callable[[int], tuple[int, list[int]]]:
    """Pass requests 0 … n-1: how many were refused, and which are left."""
    one = admission.Admission(most, *OWN, read=waiting.read, clock=waiting.clock)

    def split(count: int) -> tuple[int, list[int]]:
        refusals, left = one.split(list(range(count)))
        for refusal in refusals:
            assert refusal.error.code == "UNAVAILABLE"
            assert refusal.error.message.startswith("Exceeds maximum queue size")
        return len(refusals), left

    return split


def test_as_many_as_are_too_many_are_refused_the_oldest_first(admission: ModuleType) -> None:
    waiting = Waiting([50, 0])
    split = gate(admission, waiting, most=10)
    assert split(32) == (32, [])
    assert split(32) == (8, list(range(8, 32)))
    assert split(32) == (0, list(range(32)))
    assert waiting.asked == 1
    waiting.seconds = 1.0
    assert split(32) == (0, list(range(32)))
    assert waiting.asked == 2


@pytest.mark.parametrize("count", [0, 9, 10])
def test_up_to_the_bound_nobody_is_refused(admission: ModuleType, count: int) -> None:
    assert gate(admission, Waiting([count]), most=10)(32) == (0, list(range(32)))


def test_each_of_several_instances_refuses_its_share(admission: ModuleType) -> None:
    waiting = Waiting([13])
    one = admission.Admission(10, *OWN, instances=2, read=waiting.read, clock=waiting.clock)
    refused = []
    for second in range(4):
        waiting.seconds = second
        refused.append(len(one.split([1, 2, 3, 4])[0]))
    assert refused == [1, 2, 1, 2], "of three that are too many, half of them each time"


def test_without_a_bound_nothing_is_asked(admission: ModuleType) -> None:
    waiting = Waiting([10**6])
    assert gate(admission, waiting, most=0)(3) == (0, [0, 1, 2])
    assert waiting.asked == 0


def test_a_count_that_cannot_be_read_refuses_nobody_and_is_asked_for_again_later(
    admission: ModuleType, triton: Any
) -> None:
    waiting = Waiting([100, OSError("connection refused"), 100])
    split = gate(admission, waiting, most=10)
    assert split(1)[0] == 1
    waiting.seconds = 1.0
    assert split(32)[0] == 0
    waiting.seconds = 2.0
    assert split(32)[0] == 0
    assert waiting.asked == 2
    waiting.seconds = 60.0
    assert split(32)[0] == 32
    assert triton.logged == []


def test_metrics_that_stay_away_are_logged_once(admission: ModuleType, triton: Any) -> None:
    waiting = Waiting([OSError("connection refused")])
    split = gate(admission, waiting, most=10)
    for minute in range(10):
        waiting.seconds = 60.0 * minute
        assert split(32)[0] == 0
    assert triton.logged == ["cannot read how many requests wait (connection refused), so none is refused"]


@contextmanager
def metrics_server(answer: bytes) -> Iterator[str]:
    """Answers one request with these bytes; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1 << 16).startswith(b"GET /metrics ")
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


QUEUES = {
    ("shop", "7"): 1_000,
    ("shop_tokenizer", "3"): 2,
    ("shop_encoder", "6"): 5,
    ("shop_encoder", "7"): 30,
    ("shop_more_encoder", "7"): 400,
    ("shop_fused", "7"): 11,
    ("tokenizer_4f1d00000000", "1"): 3,
    ("tokenizer_aaaa00000000", "1"): 0,
    ("encoder_77ab00000000", "1"): 40,
    ("news_topk", "1"): 500,
    ("feedback", "1"): 257,
}


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("shop_tokenizer", "3", 37),
        ("shop_fused", "7", 11),
        ("tokenizer_4f1d00000000", "1", 43),  # neither feedback nor what only some of those who share it wait for
    ],
)
def test_the_queues_that_a_step_leads_to_count_and_no_others(
    admission: ModuleType, monkeypatch: pytest.MonkeyPatch, model: str, version: str, expected: int
) -> None:
    with metrics_server(metrics(QUEUES)) as address:
        monkeypatch.setenv("INSTRUCTREC_METRICS", address)
        assert len(admission.Admission(1, model, version).split(range(2_000))[0]) == expected - 1


@pytest.mark.parametrize("content", [b"nv_inference_count 3\n", metrics({("shop_fused", "6"): 1_000})])
def test_metrics_that_do_not_hold_the_steps_own_count_are_said_to_lack_it(
    admission: ModuleType, triton: Any, content: bytes
) -> None:
    """They may be another server's: to read no queue there as an empty one would be no bound, and nobody would know."""
    waiting = Waiting([0])
    one = admission.Admission(10, *OWN, read=lambda: content, clock=waiting.clock)
    for minute in range(10):
        waiting.seconds = 60.0 * minute
        assert one.split([1, 2])[0] == []
    [said] = triton.logged
    assert "the metrics have no nv_inference_pending_request_count of shop_fused 7), so none is refused" in said


def test_nobody_who_answers_for_the_metrics_is_an_error(admission: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_METRICS", "127.0.0.1:1")
    with pytest.raises(OSError, match="refused"):
        admission.read_metrics()


class Server:
    """Two versions of a first step, each of which takes what came for it four times a second, and their queues."""

    def __init__(self, admission: ModuleType, model: str, waits_at: str) -> None:
        self.model, self.waits_at, self.seconds, self.excess = model, waits_at, 0.0, 50
        self.taken = {(model, "1"): 5_000_000, (model, "2"): 0}
        self.refused = dict.fromkeys(self.taken, 0)
        self.steps = {
            one: admission.Admission(50, *one, read=self.metrics, clock=lambda: self.seconds) for one in self.taken
        }

    def metrics(self) -> bytes:
        waiting = {**dict.fromkeys(self.taken, 0), (self.waits_at, "1"): 50 + self.excess}
        return metrics(waiting, self.taken)

    def run(self, live: int, canary: int, seconds: int) -> list[float]:
        """Which share of its requests each refuses, if so many come in a quarter of a second."""
        before, came = dict(self.refused), dict.fromkeys(self.taken, 0)
        for _ in range(4 * seconds):
            self.seconds += 0.25
            for one, count in zip(self.steps, (live, canary), strict=True):
                self.refused[one] += len(self.steps[one].split(range(count))[0])
                self.taken[one] += count
                came[one] += count
        return [(self.refused[one] - before[one]) / max(1, came[one]) for one in self.taken]


@pytest.mark.parametrize(("model", "waits_at"), [("shop_fused", "shop_fused"), ("shop_tokenizer", "shop_encoder")])
def test_a_canary_is_refused_no_larger_a_share_than_the_live_release(
    admission: ModuleType, model: str, waits_at: str
) -> None:
    """Fifty too many at each look, of a hundred that come until the next."""
    server = Server(admission, model, waits_at)
    server.run(90, 10, 10)
    assert server.run(90, 10, 20) == pytest.approx([0.5, 0.5], abs=0.02)
    server.run(50, 50, 10)
    assert server.run(50, 50, 20) == pytest.approx([0.5, 0.5], abs=0.02)
    server.run(0, 100, 10)  # the canary was promoted
    assert server.run(0, 100, 20) == pytest.approx([0.0, 0.5], abs=0.02)


def test_a_tenth_of_a_few_is_refused_now_and_then(admission: ModuleType) -> None:
    server = Server(admission, "shop_fused", "shop_fused")
    server.excess = 1
    server.run(90, 10, 10)
    assert server.run(90, 10, 60) == pytest.approx([0.01, 0.01], abs=0.001)
