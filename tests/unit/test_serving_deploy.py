"""What a deploy that is cut off or fails leaves: what is live is in the journal, or the next command sees to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deploy_helpers import ENDPOINTS, Shop

from serving import files
from serving.deploy import deploy
from serving.embedded import Endpoints
from serving.errors import PublishError, ServerError
from serving.layout import Layout
from serving.recovery import recover
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
