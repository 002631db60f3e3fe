"""The key to what a server does for its operator alone."""

import os
from concurrent import futures
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving import admin
from serving.admin import admin_client, ensure_key, restrictions
from serving.errors import PreflightError, ServerError
from serving.layout import Layout


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "var")


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says what came along with a request."""

    def __init__(self) -> None:
        self.headers: list[dict[str, Any]] = []

    def RepositoryIndex(self, _: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the wire's name
        self.headers.append({one.key: one.value for one in context.invocation_metadata()})
        return service_pb2.RepositoryIndexResponse()


@pytest.fixture
def triton():
    server, servicer = grpc.server(futures.ThreadPoolExecutor(1)), Triton()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer.headers
    server.stop(0)


def test_only_its_owner_can_read_the_key(layout):
    before = os.umask(0)
    try:
        key = ensure_key(layout)
    finally:
        os.umask(before)
    assert layout.admin_key.stat().st_mode & 0o777 == 0o600
    assert layout.admin_key.read_text().strip() == key
    assert len(key) == 64


def test_a_var_keeps_its_key_and_no_two_have_the_same(layout, tmp_path):
    key = ensure_key(layout)
    assert ensure_key(layout) == key
    assert ensure_key(Layout(tmp_path / "other")) != key


def test_a_key_that_is_there_needs_no_room_on_the_disk(layout, monkeypatch):
    key = ensure_key(layout)
    monkeypatch.setattr(admin, "create_key", lambda *_: pytest.fail("written again"))
    assert ensure_key(layout) == key


def test_a_key_that_others_can_read_is_protected_at_the_next_start(layout):
    ensure_key(layout)
    layout.admin_key.chmod(0o644)
    ensure_key(layout)
    assert layout.admin_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", ["", "short\n", "a:b=c," * 10, "ä" * 40], ids=["empty", "short", "signs", "letters"]
)
def test_a_damaged_key_is_one_line_that_does_not_say_it(layout, content):
    ensure_key(layout)
    layout.admin_key.write_text(content)
    for asked, error in ((lambda: ensure_key(layout), PreflightError), (lambda: client_of(layout), ServerError)):
        with pytest.raises(error, match=r"admin\.key.*remove the file") as caught:
            asked()
        assert "\n" not in caught.value.message
        assert not content.strip() or content.strip() not in caught.value.message


def client_of(layout: Layout) -> None:
    admin_client(layout, "127.0.0.1:1").close()


def test_a_key_that_cannot_be_written_is_one_line(layout, tmp_path):
    (tmp_path / "var").write_text("a file in its place")
    with pytest.raises(PreflightError, match=r"admin\.key"):
        ensure_key(layout)


def test_both_protocols_ask_for_the_key_and_what_callers_need_is_open():
    options = restrictions("0a1b")
    assert [option.split("=", 1)[0] for option in options] == ["--grpc-restricted-protocol", "--http-restricted-api"]
    for option in options:
        apis, _, setting = option.split("=", 1)[1].partition(":")
        assert set(apis.split(",")) == {"model-repository", "shared-memory", "trace", "logging"}
        assert setting == "admin-key=0a1b"


def test_the_client_sends_the_key_and_none_where_there_is_none(layout, triton):
    url, headers = triton
    with admin_client(layout, url) as client:
        client.get_model_repository_index()
    key = ensure_key(layout)
    with admin_client(layout, url) as client:
        client.get_model_repository_index()
    assert [one.get("triton-grpc-protocol-admin-key") for one in headers] == [None, key]
