"""Requests are refused while too many wait: oldest first, as many as are too many, and none when nothing is known."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from serving_helpers import install_triton

METRICS = b"""# HELP nv_inference_pending_request_count Instantaneous number of pending requests
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="shop",version="7"} 1000
nv_inference_pending_request_count{model="shop_tokenizer",version="3"} 2
nv_inference_pending_request_count{model="shop_encoder",version="6"} 5
nv_inference_pending_request_count{model="shop_encoder",version="7"} 30
nv_inference_pending_request_count{model="shop_more_encoder",version="7"} 400
nv_inference_count{model="shop_encoder",version="7"} 9
"""


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

    def read(self, models: Collection[str]) -> int:
        count = self.counts[min(self.asked, len(self.counts) - 1)]
        self.asked += 1
        if isinstance(count, OSError):
            raise count
        return count

    def clock(self) -> float:
        return self.seconds


def gate(admission: ModuleType, waiting: Waiting, most: int) -> Callable[[int], tuple[int, list[int]]]:
    """Pass requests 0 … n-1: how many were refused, and which are left."""
    one = admission.Admission(most, {"shop_fused"}, read=waiting.read, clock=waiting.clock)

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
    one = admission.Admission(10, {"shop_fused"}, instances=2, read=waiting.read, clock=waiting.clock)
    assert len(one.split([1, 2, 3, 4])[0]) == 2


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


@pytest.mark.parametrize(
    ("models", "expected"),
    [({"shop_encoder"}, 35), ({"shop_tokenizer", "shop_encoder", "shop_head"}, 37), (set(), 1437)],
)
def test_the_queues_of_the_named_models_count_all_versions_of_them(
    admission: ModuleType, monkeypatch: pytest.MonkeyPatch, models: set[str], expected: int
) -> None:
    with metrics_server(METRICS) as address:
        monkeypatch.setenv("INSTRUCTREC_METRICS", address)
        assert admission.read_pending(models) == expected


def test_metrics_without_the_count_and_none_at_all_are_errors(
    admission: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with metrics_server(b"nv_inference_count 3\n") as address:
        monkeypatch.setenv("INSTRUCTREC_METRICS", address)
        with pytest.raises(OSError, match="has no nv_inference_pending_request_count"):
            admission.read_pending(set())
    with pytest.raises(OSError, match="refused"):
        admission.read_pending(set())


def test_the_steps_of_a_domain_are_known_by_its_tokenizers_name(admission: ModuleType) -> None:
    assert admission.steps_beside("shop_tokenizer") == {
        f"shop_{one}" for one in ("tokenizer", "encoder", "head", "topk")
    }
    assert admission.steps_beside("tokenizer_4f1d00000000") == set()
