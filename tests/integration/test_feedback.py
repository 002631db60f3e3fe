"""Feedback on a real server: what is acknowledged is there, whatever happens to stub, disk and file."""

import resource
import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from feedback_crashes import check, kill_server, kill_stub
from feedback_server import FeedbackServer, feedback_server
from instructrec_client import AsyncClient, Client, Feedback, InvalidRequest, ServerUnavailable
from project import Project
from wire import send_together

from serving import process_tree
from serving.errors import ServerError
from serving.feedback_model import MODEL, probe_feedback, publish_feedback
from serving.layout import Layout

PRIVATE = b"4111-private-1111"


@pytest.fixture(scope="module")
def taking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeedbackServer]:
    server = feedback_server(tmp_path_factory.mktemp("feedback") / "var")
    server.start()
    yield server
    server.stop()


def stored_ids(server: FeedbackServer, domain: str) -> list[str]:
    with server.reader() as reader:
        return [one.event_id for one in reader.events(domain)]


def request(domain: str, ids: list[str], **changed: object) -> dict[str, np.ndarray]:
    """A request below the client's checks; what is None is left out."""
    cells = {"domain": domain.encode(), "event": b"click", "item_id": b"sku-1", "instruction": b"a shirt"} | changed
    arrays = {"event_id": np.array([[one.encode()] for one in ids], dtype=np.object_)}
    for name, cell in cells.items():
        if cell is not None:
            dtype = {"value": np.float32, "timestamp": np.int64}.get(name, np.object_)
            arrays[name] = np.full((len(ids), 1), cell, dtype=dtype)
    return arrays


async def test_both_clients_send_and_repeat(taking: FeedbackServer) -> None:
    event = Feedback("rating", "sku-1", value=4, user_id="anna", instruction="call +49 171 2345678", request_id="r-1")
    with Client(taking.url, domain="both") as client:
        assert client.feedback(event) is True
        assert client.feedback(event) is False
    async with AsyncClient(taking.url, domain="both") as client:
        assert await client.feedback(event) is False
        many = [Feedback("impression", f"sku-{number}") for number in range(300)]
        assert await client.feedback_batch([*many, event]) == [True] * 300 + [False]
    with taking.reader() as reader:
        first = next(reader.events("both"))
    assert (first.event, first.value, first.instruction, first.request_id) == ("rating", 4.0, "call [phone]", "r-1")
    assert abs(first.timestamp - event.timestamp) < 0.002
    assert first.user_hash is not None
    assert "anna" not in first.user_hash


BAD = {
    "unknown event": ({"event": b"klick"}, "event"),
    "NaN": ({"value": np.nan}, "value"),
    "future": ({"timestamp": int((time.time() + 90_000) * 1_000)}, "timestamp"),
    "absurd": ({"timestamp": -(2**63)}, "timestamp"),
    "20 MB": ({"instruction": PRIVATE + b"x" * 20_000_000}, "instruction: has 20,000,017 bytes"),
    "not UTF-8": ({"instruction": PRIVATE + b"\xff"}, "instruction"),
    "missing item": ({"item_id": None}, "item_id"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_gets_its_own_error_and_harms_no_neighbour(taking: FeedbackServer, kind: str) -> None:
    changed, message = BAD[kind]
    domain = kind.replace(" ", "-")
    good = [request(domain, [f"{kind.replace(' ', '-')}-{number}"]) for number in range(6)]
    bad = request(domain, [f"{domain}-bad"], **changed)
    answers = send_together(taking.url, MODEL, [*good[:3], bad, *good[3:], bad])
    for number, answer in enumerate(answers):
        if number in (3, 7):
            assert answer.status == "INVALID_ARGUMENT", answer.error
            assert message in str(answer.error)
            assert "private" not in str(answer.error)
        else:
            assert answer.status == "OK", answer.error
            assert answer.result.as_numpy("stored").tolist() == [[1]]
    assert sorted(stored_ids(taking, domain)) == [f"{domain}-{number}" for number in range(6)]
    assert PRIVATE.decode() not in taking.layout.server_log.read_text(errors="replace")


def test_requests_share_transactions_and_ids(taking: FeedbackServer) -> None:
    def executions() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{taking.endpoints.metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_exec_count{"))

    before = executions()
    # Some leave out what is optional: such requests travel in batches of their own.
    requests = [
        request("shared", [f"shared-{number % 100}"], instruction=None if number % 50 == 0 else b"a shirt")
        for number in range(400)
    ]
    requests.append(request("shared", ["shared-a", "shared-b", "shared-a"]))
    answers = send_together(taking.url, MODEL, requests)
    assert {answer.status for answer in answers} == {"OK"}
    assert sum(answer.result.as_numpy("stored").sum() for answer in answers[:-1]) == 100
    assert answers[-1].result.as_numpy("stored").tolist() == [[1], [1], [0]]
    assert len(stored_ids(taking, "shared")) == 102
    assert executions() - before < 300, "each request was a transaction of its own"


def test_a_full_disk_refuses_and_loses_nothing(taking: FeedbackServer) -> None:
    stub = taking.process("triton_python_backend_stub")
    events = [Feedback("click", "sku-1", instruction="x" * 10_000) for _ in range(200)]
    acknowledged = []
    with Client(taking.url, domain="full", retries=0, timeout=20) as client:
        client.feedback(events[0])
        size = taking.location.file.with_name("events.sqlite-wal").stat().st_size
        # No file of this process may grow beyond this: the write fails as on a full disk.
        stub.rlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
        try:
            with pytest.raises(ServerUnavailable, match="disk"):
                for event in events:
                    client.feedback(event)
                    acknowledged.append(event.event_id)
        finally:
            stub.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert acknowledged
        assert client.feedback_batch(events) == [event.event_id not in acknowledged for event in events]
    assert len(stored_ids(taking, "full")) == len(events)


def test_a_locked_store_refuses_within_the_deadline(taking: FeedbackServer) -> None:
    other = sqlite3.connect(taking.location.file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    event = Feedback("click", "sku-1")
    with Client(taking.url, domain="locked", retries=0) as client:
        with pytest.raises(ServerUnavailable, match=r"answers that .*locked"):
            client.feedback(event)
        with pytest.raises(ServerError, match="locked"):
            probe_feedback(taking.url)
        other.execute("ROLLBACK")
        other.close()
        assert client.feedback(event) is True
    assert probe_feedback(taking.url) > 0


def test_a_damaged_file_is_said_and_never_overwritten(taking: FeedbackServer) -> None:
    event = Feedback("click", "sku-1")
    kept = taking.location.folder.with_name("kept")
    with Client(taking.url, domain="damaged", retries=0) as client:
        client.feedback(event)
        taking.location.folder.rename(kept)
        shutil.copytree(kept, taking.location.folder)
        for path in taking.location.folder.glob("events.sqlite-*"):
            path.unlink()
        taking.location.file.write_bytes(b"no database" * 1_000)
        with pytest.raises(ServerUnavailable, match="not a database"):
            client.feedback(event)
        assert taking.location.file.read_bytes() == b"no database" * 1_000
        shutil.rmtree(taking.location.folder)
        kept.rename(taking.location.folder)
        assert client.feedback(event) is False


def test_an_event_the_client_refuses_is_not_sent(taking: FeedbackServer) -> None:
    with Client(taking.url, domain="refused") as client, pytest.raises(InvalidRequest, match="row 1"):
        client.feedback_batch([Feedback("click", "sku-1"), Feedback("klick", "sku-1")])
    assert not stored_ids(taking, "refused")


def test_publishing_again_does_not_reload_the_model(taking: FeedbackServer) -> None:
    before = taking.process("triton_python_backend_stub").pid
    publish_feedback(taking.layout, taking.url)
    assert taking.process("triton_python_backend_stub").pid == before


def test_a_killed_stub_loses_nothing_that_was_acknowledged(taking: FeedbackServer) -> None:
    check(taking, kill_stub(taking, instants=2))


def test_a_killed_server_loses_nothing_that_was_acknowledged(taking: FeedbackServer) -> None:
    check(taking, kill_server(taking, instants=2))


def test_a_person_sees_what_came_in(server: Project) -> None:
    """On the server of the two commands: beside the recommendations, at the same address."""
    with Client(server.grpc_url, domain=server.domain) as client:
        answer = client.recommend("a blue shirt", k=3)
        client.feedback_batch([Feedback("impression", item.item_id, release=answer.release) for item in answer])
    layout = Layout(server.var)
    stubs = [" ".join(one.cmdline()[:2]) for one in process_tree.processes(layout.shared_memory_prefix)]
    assert sum(f"/{MODEL}/" in command for command in stubs) == 1
    lines = [line.split() for line in server.make("feedback").stdout.splitlines()]
    assert any(line[:3] == ["ecommerce", "impression", "3"] for line in lines)
    assert "feedback   can be stored" in server.make("status").stdout
