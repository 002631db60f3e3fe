"""Starting again what was live: nothing is published by it, and it listens where it did."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from deploy_helpers import ENDPOINTS, Shop
from live_repository_helpers import full

from serving.__main__ import main
from serving.canary.ensemble import new_canary, write_canary
from serving.canary.evidence import Requests
from serving.deploy import roll_back
from serving.errors import PreflightError, ServerError
from serving.feedback_model import stage_feedback
from serving.healing import Healer
from serving.layout import Layout
from serving.live_repository import read_config
from serving.server import Server
from serving.start import start


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr("serving.start.FIRST_ANSWER_SECONDS", 0.0)
    return Shop(Layout(tmp_path / "var"), monkeypatch)


def run(shop: Shop, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--var", str(shop.layout.var)])


def rolled_back(shop: Shop) -> None:
    for number in (1, 2):
        shop.deploy(number)
    roll_back(shop.layout, "shop")


@pytest.mark.parametrize("stopped", [True, False])
def test_what_was_live_answers_again_where_it_listened(shop: Shop, stopped: bool) -> None:
    rolled_back(shop)
    journal = shop.journal()
    shop.crash(forget=stopped)
    assert "run `make start`" in run(shop, "status").output
    done = run(shop, "start", "--no-watch")
    assert done.exit_code == 0, done.output
    assert done.output == f"shop release 1 answers at {ENDPOINTS.grpc_url} (first answer in 1 ms): server started\n"
    assert (shop.live(), shop.journal()) == (1, journal)
    again = run(shop, "start", "--no-watch")
    assert again.output == f"the server runs already at {ENDPOINTS.grpc_url}, nothing to do\n"


def test_a_running_server_that_nobody_watches_gets_a_watcher(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.deploy(1)
    started: list[Layout] = []
    monkeypatch.setattr("serving.watcher.start", started.append)
    assert "runs already" in (said := run(shop, "start").output) and "watcher started" in said
    assert started == [shop.layout]
    with shop.layout.watcher_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(shop, "start").output.endswith("nothing to do\n")
    assert started == [shop.layout]


def test_it_listens_elsewhere_if_told(shop: Shop) -> None:
    shop.deploy(1)
    shop.crash(forget=True)
    done = start(shop.layout, {"grpc_port": 8801})
    assert done.endpoints == ENDPOINTS.model_copy(update={"grpc_port": 8801})
    assert not start(shop.layout, {"grpc_port": 8801}).is_new
    with pytest.raises(ServerError, match=r"runs already with .*run `make stop` first"):
        start(shop.layout, {"http_port": 8802})


def moved_with_feedback(shop: Shop) -> Layout:
    """A VAR that took feedback where it was deployed, and lies elsewhere now."""
    shop.deploy(1)
    stage_feedback(shop.layout)
    shop.crash(forget=True)
    shop.layout = Layout(shop.layout.var.rename(shop.layout.var.with_name("moved")))
    return shop.layout


def store_folder(layout: Layout) -> str:
    config = read_config(layout.live / "feedback" / "config.pbtxt")
    return str(config.parameters["folder"].string_value)


def test_a_var_that_was_moved_takes_its_feedback_along(shop: Shop) -> None:
    before = shop.layout
    layout = moved_with_feedback(shop)
    assert store_folder(layout) == str(before.feedback)
    started = start(layout, {})
    assert started.is_new
    assert store_folder(layout) == str(layout.feedback)


def test_a_watcher_takes_the_feedback_of_a_moved_var_along_too(shop: Shop) -> None:
    layout = moved_with_feedback(shop)
    layout.stopped_server_state.replace(layout.server_state)
    [said] = Healer(layout).look()
    assert said.startswith("tritonserver is gone: server started afresh")
    assert store_folder(layout) == str(layout.feedback)


def test_recommendations_come_back_where_feedback_cannot_be_led_to_its_store(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layout = moved_with_feedback(shop)
    monkeypatch.setattr("serving.step_configs.write_atomically", full)
    assert start(layout, {}).is_new
    assert "feedback goes where it went before: cannot write" in caplog.text
    assert "No space left on device" in caplog.text


def test_the_server_is_asked_where_it_listens_unless_told_otherwise(shop: Shop) -> None:
    def url(*told: str) -> str:
        return run(shop, "url", *told).output

    assert url() == "127.0.0.1:8001\n"
    shop.deploy(1)
    assert url() == "127.0.0.1:7001\n"
    shop.crash(forget=True)
    assert url() == "127.0.0.1:7001\n"
    assert url("--grpc-port", "9001") == "127.0.0.1:9001\n"
    assert url("--host", "10.0.0.7") == "10.0.0.7:7001\n"
    start(shop.layout, {"host": "0.0.0.0"})  # noqa: S104 - nothing binds here
    assert url() == "127.0.0.1:7001\n", "as a client on this machine reaches it"


def test_who_asks_needs_no_right_to_read_what_the_server_wrote_down(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.deploy(1)
    read = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path == shop.layout.server_state:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    assert run(shop, "url").output == "127.0.0.1:8001\n"
    assert run(shop, "url", "--grpc-port", "9001").output == "127.0.0.1:9001\n"
    assert "server.json is another user's, and cannot be read: run this as that user" in run(shop, "stop").output


def test_where_nothing_is_live_a_deploy_is_due(shop: Shop) -> None:
    with pytest.raises(ServerError, match=r"no release is live in .*run `make deploy`"):
        start(shop.layout, {})
    assert "no server runs" in (said := run(shop, "status").output)
    assert "run `make deploy`" in said
    assert not shop.layout.server_state.exists()


def test_a_canary_is_the_canary_again(shop: Shop) -> None:
    shop.deploy(1)
    write_canary(shop.repository, new_canary(shop.releases[2], 0.1, (), Requests(0, 0, 0.0)), shop.releases[2])
    shop.crash(forget=True)
    assert start(shop.layout, {}).refused == ()
    assert "shop_canary" in shop.loaded
    assert shop.live() == 1


def test_a_start_in_vain_is_forgotten(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_until_ready(*_: Any) -> None:
        raise PreflightError("no memory")

    shop.deploy(1)
    shop.crash(forget=True)
    with monkeypatch.context() as patch:
        patch.setattr(Server, "wait_until_ready", wait_until_ready)
        with pytest.raises(PreflightError):
            start(shop.layout, {"grpc_port": 8801})
    assert not shop.layout.server_state.exists(), "a watcher would try again"
    assert start(shop.layout, {}).endpoints == ENDPOINTS


@pytest.mark.parametrize("content", ["", '{"pid": 7, "ident'])
@pytest.mark.parametrize("seen", [True, False])
def test_the_watcher_starts_a_server_of_which_nothing_readable_is_written_down(
    shop: Shop, content: str, seen: bool
) -> None:
    shop.deploy(1)
    shop.crash(forget=True)
    elsewhere = ENDPOINTS.model_copy(update={"grpc_port": 8801})
    start(shop.layout, {"grpc_port": 8801})
    healer = Healer(shop.layout)
    if seen:
        assert healer.look() == []
    shop.layout.server_state.write_text(content)
    [said] = healer.look()
    assert said.startswith("tritonserver is gone: server started afresh")
    state = shop.server.state()
    assert state is not None
    assert state.endpoints == (elsewhere if seen else ENDPOINTS), "else where the one before it listened"
    assert healer.look() == []


def test_a_release_that_is_silent_or_cannot_be_asked_is_told(shop: Shop) -> None:
    shop.deploy(1)
    shop.crash(forget=True)
    shop.broken = {1}
    silent = run(shop, "start", "--no-watch")
    assert (silent.exit_code, "release 1 does not answer" in silent.output) == (1, True)
    shop.crash()
    shutil.rmtree(shop.releases[1].path)
    unknown = run(shop, "start", "--no-watch")
    assert (unknown.exit_code, "nobody can tell whether shop release 1 answers" in unknown.output) == (0, True)


def test_the_watcher_says_first_why_the_server_went(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The restart that follows moves the server's log away."""
    shop.deploy(1)
    shop.crash()
    shop.layout.server_log.parent.mkdir(parents=True)
    shop.layout.server_log.write_text("I0101 started\nE0101 server.cc:9] Signal (11) received\n")
    [said] = Healer(shop.layout).look()
    assert said.startswith("tritonserver is gone: server started afresh")
    assert "tritonserver is gone; the server's log says: Signal (11) received" in caplog.text
