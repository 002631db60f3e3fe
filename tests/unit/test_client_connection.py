"""How the client connects, and finds out that a connection is of no use any more."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client_helpers import PATIENCE, awaited, blocking, serving
from instructrec_client import Client, ServerUnavailable

NOBODY = "127.0.0.1:1"
both = pytest.mark.parametrize("ask", [blocking, awaited])


@pytest.fixture
def proxy(monkeypatch):
    """The address of a proxy that the environment names, and that nobody runs."""
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("grpc_proxy", f"http://{NOBODY}")
    return NOBODY


@both
@pytest.mark.parametrize(
    "address", ["127.0.0.1:{}", "localhost:{}", "dns:///localhost:{}", "ipv4:127.0.0.1:{0},127.0.0.1:{0}"]
)
def test_a_server_of_this_machine_is_asked_without_the_environments_proxy(ask, address, proxy):
    with serving() as (_, url):
        assert ask(address.format(url.rpartition(":")[2]))[0].item_id == "item_id"


@both
def test_any_other_server_is_asked_through_the_environments_proxy(ask, proxy):
    with pytest.raises(ServerUnavailable, match=proxy):
        ask("192.0.2.1:8001", settings={"retries": 0}, timeout=PATIENCE)


def test_a_connected_client_finds_a_server_that_comes_back():
    with ThreadPoolExecutor(1) as pool:
        with serving() as (_, url):
            client = Client(url, retries=1_000, timeout=PATIENCE)
            client.recommend("a shirt")
        with client:
            under_way = pool.submit(client.recommend, "a shirt")
            time.sleep(0.3)
            assert not under_way.done()
            with serving(port=int(url.rpartition(":")[2])):
                assert under_way.result()[0].title == "title"


ANSWERING = """
import time
from client_helpers import serving

with serving() as (_, url):
    print(url, flush=True)
    time.sleep(600)
"""


def test_a_server_that_freezes_is_found_to_be_gone():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", ANSWERING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            with Client(server.stdout.readline().strip(), retries=0) as client:
                client.recommend("a shirt", timeout=PATIENCE)
                server.send_signal(signal.SIGSTOP)
                # The deadline is past the longest that it may take to notice, and below the minute of gRPC's default.
                with pytest.raises(ServerUnavailable, match="ping timeout"):
                    client.recommend("a shirt", timeout=50)
        finally:
            server.kill()
