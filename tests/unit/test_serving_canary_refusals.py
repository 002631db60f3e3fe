"""How many requests a first step refused is read from the server itself, or is unknown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.canary.evidence import count_refused
from serving.embedded import Endpoints

LINES = b'instructrec_refused_requests{model="shop_fused",version="2"} 17\n'


@pytest.fixture
def metrics() -> Iterator[Callable[[bytes], Endpoints]]:
    """Serves some bytes as a server's whole answer."""
    servers = []

    def serve(content: bytes) -> Endpoints:
        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                self.rfile.readline()
                self.wfile.write(content)

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return Endpoints(metrics_port=server.server_port)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_environments_proxy_is_not_asked(
    metrics: Callable[[bytes], Endpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = metrics(b"HTTP/1.0 200 OK\r\n\r\n" + LINES.replace(b"17", b"99"))
    monkeypatch.setenv("http_proxy", f"http://{proxy.metrics_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    endpoints = metrics(b"HTTP/1.0 200 OK\r\n\r\n" + LINES)
    assert count_refused(endpoints, "shop_fused", 2) == 17


@pytest.mark.parametrize(
    "answer",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + LINES,
        b"HTTP/1.0 500 Internal Server Error\r\n\r\n" + LINES,
        b"HTTP/1.0 200 OK\r\n\r\n" + LINES.replace(b"17", b"many"),
        b"HTTP/1.0 200 OK\r\n\r\n\xff" + LINES,
        b"HTTP/1.0 200 OK\r\n\r\n" + LINES.replace(b"shop_fused", b"shop_tokenizer"),
    ],
)
def test_what_is_not_said_is_unknown(metrics: Callable[[bytes], Endpoints], answer: bytes) -> None:
    assert count_refused(metrics(answer), "shop_fused", 2) is None
