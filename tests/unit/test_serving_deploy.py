"""What a deploy that is cut off or fails leaves: what is live is in the journal, or the next command sees to it."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from deploy_helpers import ENDPOINTS, Shop
from live_repository_helpers import Crash, listed
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving import files
from serving.__main__ import main
from serving.canary.ensemble import new_canary, read_canary, write_canary
from serving.canary.evidence import Requests
from serving.deploy import deploy, roll_back
from serving.embedded import Endpoints
from serving.errors import PublishError, ReleaseError, ServerError
from serving.gates.gates import Finding, Gates
from serving.gates.settings import GateSettings
from serving.journal import Journal
from serving.layout import Layout
from serving.recovery import recover
from serving.releases import Release, ReleaseStore
from serving.server import ServerState


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(Layout(tmp_path / "var"), monkeypatch)


@pytest.fixture
def cut_off(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Raise just after the ensemble's config was replaced, once."""

    def cut_off(error: BaseException) -> None:
        real, before = files.sync_folder, shop.repository.live_release("shop")

        def sync_folder(folder: Path) -> None:
            real(folder)
            if folder == shop.layout.live / "shop" and shop.repository.live_release("shop") != before:
                monkeypatch.setattr(files, "sync_folder", real)
                raise error

        monkeypatch.setattr(files, "sync_folder", sync_folder)

    return cut_off


def broken_disk() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def test_releases_follow_each_other(shop: Shop) -> None:
    assert [shop.deploy(number).action for number in (1, 2, 3, 3)] == ["started", "published", "published", "unchanged"]
    assert shop.live() == 3
    assert [(one.release, one.before, one.verb) for one in shop.journal()] == [
        (1, None, "deploy"),
        (2, 1, "deploy"),
        (3, 2, "deploy"),
    ]
    assert shop.repository.marks.all() == []


def test_a_release_from_another_machine_needs_only_its_folder(shop: Shop, tmp_path: Path) -> None:
    folder = shop.layout.releases("shop")
    elsewhere = folder.rename(tmp_path / "elsewhere")
    for number in (2, 3):
        incoming = folder / f".{number}.incoming"
        shutil.copytree(elsewhere / f"{number}", incoming)
        assert number not in ReleaseStore(folder).numbers()
        incoming.rename(folder / f"{number}")
        assert shop.deploy(number).release == number
    said = CliRunner().invoke(main, ["status", "--var", f"{shop.layout.var}"]).output
    assert "shop       release 3 answers a real instruction" in said
    assert roll_back(shop.layout, "shop").release == 2
    assert not (shop.layout.var / "runs").exists()


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(("error", "told"), [(KeyboardInterrupt(), KeyboardInterrupt), (broken_disk(), PublishError)])
def test_a_switch_that_is_cut_off_after_its_rename_is_undone(
    shop: Shop,
    cut_off: Callable[[BaseException], None],
    runs: bool,
    error: BaseException,
    told: type[BaseException],
) -> None:
    shop.deploy(1)
    if not runs:
        shop.crash()
    cut_off(error)
    with pytest.raises(told):
        shop.deploy(2)
    assert shop.live() == 1
    assert shop.loaded.count("shop") == runs, "the server is told of the config before"
    assert (shop.repository.marks.all(), recover(shop.layout)) == ([], [])
    assert [one.release for one in shop.journal()] == [1]


@pytest.mark.parametrize("runs", [True, False])
def test_a_first_release_whose_switch_is_cut_off_is_not_live(
    shop: Shop, cut_off: Callable[[BaseException], None], runs: bool
) -> None:
    if runs:
        shop.say_it_runs()
    cut_off(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        shop.deploy(1)
    assert shop.repository.domains() == []
    assert shop.repository.marks.all() == []


@pytest.mark.parametrize("runs", [True, False])
def test_a_switch_that_cannot_be_undone_keeps_its_mark(
    shop: Shop, cut_off: Callable[[BaseException], None], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(*_: Any) -> None:
        raise PublishError("cannot write the live repository")

    shop.deploy(1)
    if not runs:
        shop.crash()
    cut_off(broken_disk())
    with monkeypatch.context() as patch:
        patch.setattr(type(shop.repository), "restore", restore)
        with pytest.raises(PublishError, match="Input/output error"):
            shop.deploy(2)
    assert shop.live() == 2
    assert [(one.domain, one.number) for one in shop.repository.marks.all()] == [("shop", 2)]
    [said] = recover(shop.layout)
    assert said.startswith("the publish of shop release 2 was killed")
    assert shop.live() == (2 if runs else 1)
    assert [one.release for one in shop.journal()] == ([1, 2] if runs else [1])


def test_a_release_that_does_not_answer_is_taken_back(shop: Shop) -> None:
    shop.deploy(1)
    shop.broken = {2}
    with pytest.raises(PublishError, match="release 2 is not live: release 2 does not answer; release 1 still answers"):
        shop.deploy(2)
    shop.crash()
    with pytest.raises(ServerError, match="release 2 does not answer"):
        shop.deploy(2)
    assert (shop.live(), shop.repository.marks.all()) == (1, [])


def test_a_deploy_that_fails_while_the_server_is_down_leaves_it_to_the_watcher(shop: Shop) -> None:
    shop.deploy(1)
    shop.crash()
    known = shop.layout.server_state.read_text()
    shop.broken = {2}
    elsewhere = Endpoints(grpc_port=8801)
    for endpoints in (ENDPOINTS, elsewhere):
        with pytest.raises(ServerError, match="release 2 does not answer"):
            deploy(shop.layout, shop.releases[2], endpoints, gates=None)
        assert shop.server.state() is None
        assert ServerState.model_validate_json(shop.layout.server_state.read_text()) == (
            ServerState.model_validate_json(known)
        ), "it is started where it listened"
    shop.broken.clear()
    assert deploy(shop.layout, shop.releases[2], elsewhere, gates=None).endpoints == elsewhere


def test_a_first_start_that_fails_leaves_nothing_to_watch(shop: Shop) -> None:
    shop.broken = {1}
    with pytest.raises(ServerError):
        shop.deploy(1)
    assert not shop.layout.server_state.exists()


def test_a_release_that_crashed_the_server_is_rolled_back(shop: Shop) -> None:
    elsewhere = Endpoints(grpc_port=8801)
    for number in (1, 3):
        deploy(shop.layout, shop.releases[number], elsewhere, gates=None)
    shop.crash()
    done = roll_back(shop.layout, "shop")
    assert (done.action, done.answer.release, done.endpoints) == ("started", "1", elsewhere)
    assert shop.live() == 1
    for step in ("encoder", "topk"):
        assert listed(shop.repository, f"shop_{step}") == [1], "what crashed the server is not loaded again"
    last = shop.journal()[-1]
    assert (last.release, last.before, last.verb) == (1, 3, "rollback")
    assert roll_back(shop.layout, "shop", 3).action == "published"
    assert shop.live() == 3


def test_a_rollback_that_fails_leaves_the_release_of_before_whole(shop: Shop) -> None:
    for number in (1, 3):
        shop.deploy(number)
    shop.crash()
    shop.broken = {1}
    with pytest.raises(ServerError, match="release 1 does not answer"):
        roll_back(shop.layout, "shop")
    assert shop.live() == 3


@pytest.mark.parametrize("gone", [False, True])
def test_a_rollback_that_is_killed_leaves_the_release_of_before_whole(shop: Shop, gone: bool) -> None:
    """Also where the release that it went to was removed meanwhile."""
    for number in (1, 3):
        shop.deploy(number)
    live = shop.repository.live_release("shop")
    assert live is not None
    shop.crash()
    shop.repository.stage(shop.releases[1])
    shop.repository.switch(shop.releases[1])
    shop.repository.unlist(live)
    if gone:
        shutil.rmtree(shop.releases[1].path)
    assert recover(shop.layout) == ["the publish of shop release 1 was killed: taken back"]
    assert shop.live() == 3


def test_a_rollback_after_a_stop_starts_the_server_where_it_listened(shop: Shop) -> None:
    for number in (1, 3):
        shop.deploy(number)
    shop.crash(forget=True)
    assert roll_back(shop.layout, "shop").endpoints == ENDPOINTS
    assert listed(shop.repository, "shop_topk") == [1, 3], "nothing crashed, so it is one step away"


def test_a_rollback_needs_a_live_release_and_one_before(shop: Shop) -> None:
    with pytest.raises(ServerError, match="there is nothing to roll back"):
        roll_back(shop.layout, "shop")
    shop.deploy(1)
    with pytest.raises(ReleaseError, match="nothing is known to have answered before release 1"):
        roll_back(shop.layout, "shop")


def test_a_rollback_waits_for_the_watcher_and_chooses_after_it(shop: Shop) -> None:
    """Whoever held the lock may have changed what is live."""
    for number in (1, 2):
        shop.deploy(number)
    with ThreadPoolExecutor(1) as pool:
        with shop.server.lock():
            done = pool.submit(roll_back, shop.layout, "shop")
            time.sleep(0.2)
            assert not done.done()
            Journal(shop.layout.journal("shop")).write(2, 3, "deploy")
        assert done.result(60).answer.release == "3"


@pytest.mark.parametrize("failing", ["publish_feedback", "leave_to_live"])
def test_what_fails_once_a_release_is_live_is_a_warning(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: Any) -> None:
        assert shop.journal()[-1].release == 2
        assert shop.repository.marks.all() == []
        raise PublishError("No space left on device")

    shop.deploy(1)
    monkeypatch.setattr(f"serving.deploy.{failing}", fail)
    done = shop.deploy(2)
    assert (done.action, done.warnings) == ("published", ("No space left on device",))
    assert shop.live() == 2


def test_a_live_release_that_is_busy_is_neither_broken_nor_taken_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.deploy(1)
    with monkeypatch.context() as patch:
        patch.setattr("serving.deploy.Journal.write", Mock(side_effect=Crash))
        with pytest.raises(Crash):
            shop.deploy(2)
    shop.busy = True
    assert recover(shop.layout) == ["the publish of shop release 2 was killed after it answered: kept"]
    done = shop.deploy(2)
    assert (done.action, done.release, done.answer) == ("unchanged", 2, None)
    said = CliRunner().invoke(main, ["status", "--var", str(shop.layout.var)]).output
    assert "release 2 answers others; too many wait" in said
    shop.busy, shop.broken = False, {2}
    with pytest.raises(ServerError, match="run `make stop start` to start it afresh"):
        shop.deploy(2)


def test_a_server_that_a_publish_ends_is_not_said_to_answer(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_steps(*_: Any) -> None:
        shop.layout.server_log.write_text("I0101 started\nE0101 python_be.cc:9] out of memory\n")
        shop.crash()
        raise PublishError("Triton refuses shop_topk: failed to connect to all addresses")

    shop.deploy(1)
    shop.layout.server_log.parent.mkdir(parents=True)
    monkeypatch.setattr("serving.deploy.load_steps", load_steps)
    with pytest.raises(PublishError) as caught:
        shop.deploy(2)
    assert caught.value.message == (
        "release 2 is not live: tritonserver ended: out of memory; release 1 answers again when the watcher or "
        "`make start` starts the server"
    )
    assert shop.live() == 1


def test_a_server_that_asks_for_a_key_that_is_lost_is_told_with_what_helps(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InferenceServerException(
            "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'",
            status="StatusCode.UNAVAILABLE",
        )

    shop.deploy(1)
    with monkeypatch.context() as patch:
        client = SimpleNamespace(load_model=refuse, unload_model=refuse, is_model_ready=lambda *_, **__: True)
        patch.setattr(grpc, "InferenceServerClient", lambda *_, **__: nullcontext(client))
        with pytest.raises(PublishError, match=r"restricted.*VAR/admin\.key is gone.*run `make stop start`.*1 still"):
            shop.deploy(2)
    assert shop.live() == 1


class Forced(Gates):
    """Gates by which no release passes, and which are overridden: one says so from the files, one from answers."""

    def __init__(self) -> None:
        super().__init__(GateSettings(), force=True)

    def check_files(self, release: Release, live: Release | None) -> None:
        self._add(Finding("task", False, "worse"), release)

    def check_answers(self, client: Any, url: str, release: Release, live: Release) -> None:
        self._add(Finding("latency", False, "slower"), release)


@pytest.mark.parametrize("runs", [True, False])
def test_a_publish_that_is_killed_before_its_journal_is_journaled_as_what_it_was(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    shop.deploy(1)
    if not runs:
        shop.crash()
    with monkeypatch.context() as patch:
        patch.setattr("serving.deploy.Journal.write", Mock(side_effect=Crash))
        with pytest.raises(Crash):
            shop.deploy(2, gates=Forced(), verb="follow")
    canary = new_canary(shop.releases[2], 0.1, (), Requests(0, 0, 0.0))
    write_canary(shop.repository, canary, shop.releases[2])
    assert recover(shop.layout) == ["the publish of shop release 2 was killed after it answered: kept"]
    last = shop.journal()[-1]
    assert (last.release, last.before, last.verb) == (2, 1, "follow")
    assert last.forced == (("task", "latency") if runs else ("task",)), "without a server nothing was asked"
    assert read_canary(shop.repository, "shop") is None, "it would be held against itself"
    assert not list(shop.layout.live.glob(".*"))
