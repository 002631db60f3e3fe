"""Locust's users against a gRPC server that answers wrongly on command; a healthy one is for the integration tests."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from loadtest.closed_loop import ClosedLoop, run_closed_loop
from loadtest.errors import LoadTestError


class WrongServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """In turn: two items in order, two whose scores rise, a full queue."""

    def __init__(self):
        self.asked = 0
        self.lock = threading.Lock()
        self.peers = set()

    def ModelReady(self, request, context):  # noqa: N802 - gRPC's name
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelInfer(self, request, context):  # noqa: N802
        with self.lock:
            self.asked += 1
            turn = self.asked % 3
            self.peers.add(context.peer())
        if turn == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        scores = [2.0, 1.0] if turn == 1 else [1.0, 2.0]
        response = service_pb2.ModelInferResponse(model_version="1")
        texts = {"item_id": [b"p1", b"p2"], "title": [b"t"] * 2, "label": [b"l"] * 2, "release": [b"9"]}
        for name, values in texts.items():
            response.outputs.add(name=name, datatype="BYTES", shape=(1, len(values)))
            response.raw_output_contents.append(serialize_byte_tensor(np.array([values], dtype=object)).item())
        for name, floats in [("score", np.float32([scores])), ("reason", np.zeros((1, 2, 4), np.float32))]:
            response.outputs.add(name=name, datatype="FP32", shape=floats.shape)
            response.raw_output_contents.append(floats.tobytes())
        return response


@pytest.fixture
def wrong_server():
    playing = WrongServer()
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(playing, server)
    playing.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield playing
    server.stop(None).wait()


def settings(url, instructions, **changed):
    given = ClosedLoop(
        url=url,
        domain="ecommerce",
        instructions=instructions,
        k=2,
        users=3,
        spawn_rate=10,
        duration_s=2,
        deadline_s=1,
    )
    return given.model_copy(update=changed)


def test_refusals_and_wrong_answers_are_failures(wrong_server, tmp_path):
    instructions = tmp_path / "x.jsonl"
    instructions.write_text('"a shirt"\n{"text": "shoes", "history": ["p1"]}')
    seconds = []
    summary = run_closed_loop(settings(wrong_server.url, instructions), tmp_path, seconds.append)
    assert wrong_server.asked >= summary.requests > 30
    third = summary.requests / 3
    assert summary.releases == {"9": pytest.approx(third, abs=2)}
    assert sorted(summary.errors) == [
        f"QueueFull: the queue of {wrong_server.url} is full: send less at once, or add servers",
        "WrongAnswer: a score is above the one before it",
    ]
    assert list(summary.errors.values()) == [pytest.approx(third, abs=2)] * 2
    assert summary.error_rate == pytest.approx(2 / 3, abs=0.05)
    assert len(wrong_server.peers) == 3  # a connection for each user
    assert sum(seconds) > 2
    assert 0 < summary.asking < 16
    html = (tmp_path / "report.html").read_text()
    assert "QueueFull" in html
    assert "WrongAnswer" in html


@pytest.mark.parametrize(("items", "right"), [(None, False), (44_446, False), (2, True)])
def test_an_answer_that_is_too_short_is_a_failure_unless_the_catalogue_has_no_more(
    wrong_server, tmp_path, items, right
):
    (tmp_path / "x.jsonl").write_text('"a shirt"')
    if items is not None:
        (tmp_path / "manifest.json").write_text(f'{{"items": {items}}}')
    asking = settings(wrong_server.url, tmp_path / "x.jsonl", k=10, users=1, duration_s=0.5)
    summary = run_closed_loop(asking, tmp_path, lambda _: None)
    assert bool(summary.releases) == right
    assert ("WrongAnswer: 2 items where 10 are right" in summary.errors) != right


def test_what_counts_begins_when_all_users_have_started(wrong_server, tmp_path):
    (tmp_path / "x.jsonl").write_text('"a shirt"')
    slow_start = settings(wrong_server.url, tmp_path / "x.jsonl", users=4, spawn_rate=2, duration_s=0.5)
    summary = run_closed_loop(slow_start, tmp_path, lambda _: None)
    assert len(wrong_server.peers) == 4, "though two of them start after more than the duration"
    assert 0.5 <= summary.duration_s < 2
    assert 0 < summary.requests < 0.8 * wrong_server.asked, "two of them ask for a second before"


def test_users_that_cannot_ask_are_one_line_and_no_verdict(wrong_server, tmp_path):
    nowhere = settings(wrong_server.url, tmp_path / "none.jsonl", duration_s=0.5)
    with pytest.raises(LoadTestError, match=r"only 0 of 3 users could ask: .*none\.jsonl: cannot read") as raised:
        run_closed_loop(nowhere, tmp_path, lambda _: None)
    assert "\n" not in raised.value.message


def test_a_load_test_that_is_terminated_takes_locust_along(wrong_server, tmp_path):
    (tmp_path / "x.jsonl").write_text('"a shirt"')
    (tmp_path / "x.yaml").write_text("sla: {p50_ms: 60}")
    command = [sys.executable, "-m", "loadtest", "--url", wrong_server.url, "--k", "2", "--duration", "50"]
    command += ["--config", tmp_path / "x.yaml", "--instructions", tmp_path / "x.jsonl", "--output-dir", tmp_path / "y"]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as load_test:
        while wrong_server.asked < 10:
            assert load_test.poll() is None
            time.sleep(0.05)
        [locust] = psutil.Process(load_test.pid).children()
        load_test.terminate()
    assert load_test.returncode == 143
    assert not locust.is_running()
    assert list((tmp_path / "y").iterdir()) == []


def test_a_locust_that_fails_is_one_line(tmp_path):
    with pytest.raises(LoadTestError, match=r"Locust ended with 1: .*") as raised:
        run_closed_loop(settings("127.0.0.1:1", tmp_path / "x.jsonl"), tmp_path / "no such folder", lambda _: None)
    assert "\n" not in raised.value.message
