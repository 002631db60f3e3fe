"""The client against the real server."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from instructrec_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerUnavailable,
)

TEXT = "I want to buy something blue"


@pytest.fixture
def client(server):
    with Client(server.grpc_url, domain=server.domain, timeout=30) as client:
        yield client


def check(answer, k):
    """Check what the contract promises of every answer."""
    assert 1 <= len(answer) <= k
    scores = [item.score for item in answer]
    assert scores == sorted(scores, reverse=True)
    assert len({item.item_id for item in answer}) == len(answer)
    for item in answer:
        assert item.item_id
        assert item.title
        assert item.label
        assert item.reason.total == pytest.approx(item.score, abs=1e-4)
    assert answer.release
    assert answer.model_version


def assert_same(answer, other):
    """Check that two answers agree, but for the rounding of another batch."""
    assert [item.item_id for item in answer] == [item.item_id for item in other]
    np.testing.assert_allclose([item.score for item in answer], [item.score for item in other], atol=1e-4)


def test_ready(client):
    assert client.ready() is True


@pytest.mark.parametrize("k", [1, 10, 100])
def test_recommend(client, k):
    answer = client.recommend(TEXT, k=k)
    check(answer, k)
    assert_same(answer[:1], client.recommend(TEXT, k=1))


def test_the_asyncio_twin_answers_the_same(server, client):
    async def ask():
        async with AsyncClient(server.grpc_url, domain=server.domain, timeout=30) as twin:
            assert await twin.ready()
            return await asyncio.gather(twin.recommend(TEXT), twin.recommend_batch([TEXT, "shoes"]))

    one, several = asyncio.run(ask())
    check(one, 10)
    assert_same(one, client.recommend(TEXT))
    assert len(several) == 2
    assert_same(several[0], one)


def test_a_batch_of_more_rows_than_a_request_takes(client):
    texts = [f"{TEXT}, number {index}" for index in range(70)]
    shown = [item.item_id for item in client.recommend(TEXT, k=5)]
    histories = [shown[: index % 4] for index in range(70)]
    answers = client.recommend_batch(texts, histories=histories, k=7)
    assert len(answers) == 70
    for answer in answers:
        check(answer, 7)
    for index in (0, 31, 32, 69):
        assert_same(answers[index], client.recommend(texts[index], history=histories[index], k=7))


def test_history_changes_the_scores(client):
    without = client.recommend(TEXT)
    assert {item.reason.history for item in without} == {0.0}
    last = without[-1].item_id
    with_history = client.recommend(TEXT, history=[last])
    check(with_history, 10)
    assert any(item.reason.history != 0 for item in with_history)
    assert [item.score for item in with_history] != [item.score for item in without]


def test_unknown_ids_and_padding_are_ignored(client):
    without = client.recommend(TEXT)
    assert_same(client.recommend(TEXT, history=["no such item", "", "nor this"]), without)
    known = without[3].item_id
    assert_same(client.recommend(TEXT, history=["no such item", known, ""]), client.recommend(TEXT, history=[known]))


@pytest.mark.parametrize("text", ["čaj a 茶", "a\x00b", "🧵" * 50, "word " * 1000])
def test_any_text_within_the_limits_is_answered(client, text):
    check(client.recommend(text), 10)


@pytest.mark.parametrize("text", ["x" * 16_385, "word " * 200_000])
def test_a_text_over_the_limit_is_refused_by_the_server(client, text):
    with pytest.raises(InvalidRequest, match="the server refused the request"):
        client.recommend(text)
    check(client.recommend(TEXT), 10)


def test_a_history_over_the_limit_is_refused_by_the_server(client):
    with pytest.raises(InvalidRequest, match="the server refused the request"):
        client.recommend(TEXT, history=["p1"] * 1001)


def test_an_unknown_domain(server):
    with Client(server.grpc_url, domain="no-such-domain") as client:
        assert client.ready() is False
        with pytest.raises(ModelNotFound, match="no-such-domain"):
            client.recommend(TEXT)


def test_a_deadline_too_short(client):
    with pytest.raises(DeadlineExceeded):
        client.recommend_batch([TEXT] * 3200, timeout=0.01)
    check(client.recommend(TEXT), 10)


def test_the_http_port_is_not_the_grpc_port(server):
    url = server.http_url.removeprefix("http://").rstrip("/")
    with Client(url, domain=server.domain, retries=0) as client:
        assert client.ready() is False
        with pytest.raises(ServerUnavailable, match="check the address"):
            client.recommend(TEXT)


def test_threads_share_one_client_and_a_bad_request_harms_no_other(client):
    texts = [f"{TEXT} {index}" for index in range(16)]
    alone = client.recommend_batch(texts, k=5)

    def ask(index):
        if index % 5 == 4:
            with pytest.raises(InvalidRequest):
                client.recommend("x" * 20_000)
        return client.recommend(texts[index], k=5)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            for answer, expected in zip(pool.map(ask, range(16)), alone, strict=True):
                check(answer, 5)
                assert_same(answer, expected)


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "instructrec_client", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_prints_a_table(server, client):
    done = run_command(TEXT, "--k", "3", "--url", server.grpc_url, "--domain", server.domain)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows, blank, last = done.stdout.splitlines()
    assert heading.split()[:3] == ["rank", "title", "label"]
    assert (len(rows), blank) == (3, "")
    for row, item in zip(rows, client.recommend(TEXT, k=3), strict=True):
        assert item.item_id in row
        assert item.label in row
    assert last.startswith("release ")
    assert last.endswith(" ms")


def test_the_command_prints_json(server, client):
    answer = client.recommend(TEXT, k=2)
    history = f"{answer[0].item_id}, {answer[1].item_id}"
    done = run_command(
        TEXT, "--json", "--k", "2", "--history", history, "--url", server.grpc_url, "--domain", server.domain
    )
    content = json.loads(done.stdout)
    expected = client.recommend(TEXT, history=history.split(", "), k=2)
    assert [item["item_id"] for item in content["items"]] == [item.item_id for item in expected]
    assert content["items"][0]["reason"].keys() == {"instruction", "label", "history", "prior"}
    assert content["release"] == expected.release
    assert content["latency_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--k", "101"], "k must be from 1 to 100"),
        (["--url", "127.0.0.1:1"], "127.0.0.1:1 is unavailable"),
        (["--url", "http://127.0.0.1:8000"], "without a scheme"),
        (["--timeout", "0"], "seconds above 0"),
        (["--domain", "no-such-domain"], "no-such-domain"),
    ],
)
def test_the_command_says_an_error_in_one_line(server, arguments, said):
    done = run_command(TEXT, "--url", server.grpc_url, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
