"""A publish that was killed is brought to an end before anything else; here without a server."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from live_repository_helpers import ENCODER_KEPT, Crash, check_whole, crash_at, full, listed, publish
from serving_helpers import build_release

from serving.errors import PublishError, ReleaseError
from serving.files import write_atomically
from serving.journal import Journal
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.recovery import recover
from serving.releases import Release


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "var")


def releases_of(layout: Layout) -> dict[int, Release]:
    return {n: build_release(layout.releases("shop"), n, steps) for n, steps in ENCODER_KEPT.items()}


def deploy(layout: Layout, release: Release) -> None:
    """Publish, and write it into the journal, as a deploy does."""
    repository = LiveRepository(layout.live)
    before = repository.live_release("shop")
    publish(repository, release)
    Journal(layout.journal("shop")).write(release.number, before.number if before else None, "deploy")


def test_nothing_to_end(layout):
    assert recover(layout) == []
    deploy(layout, releases_of(layout)[1])
    assert recover(layout) == []
    assert LiveRepository(layout.live).marks.all() == []


@pytest.mark.parametrize("switched", [False, True])
def test_a_release_that_never_answered_is_taken_back(layout, switched):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    repository.stage(releases[3])
    if switched:
        repository.switch(releases[3])
    assert recover(layout) == ["the publish of shop release 3 was killed: taken back"]
    assert check_whole(repository, releases) == 1
    assert (listed(repository, "shop_encoder"), listed(repository, "shop_topk")) == ([1], [1])
    assert recover(layout) == []
    assert [one.release for one in Journal(layout.journal("shop")).publications()] == [1]


def test_the_live_release_whose_deploy_once_more_was_killed_is_not_called_taken_back(layout):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    repository.stage(releases[1])
    repository.switch(releases[1])
    assert recover(layout) == ["the publish of shop release 1 was killed: stays as it was before"]
    assert check_whole(repository, releases) == 1
    assert [one.release for one in Journal(layout.journal("shop")).publications()] == [1]


def test_a_first_release_that_never_answered_leaves_nothing_live(layout):
    repository, release = LiveRepository(layout.live), releases_of(layout)[1]
    repository.stage(release)
    repository.switch(release)
    recover(layout)
    assert repository.domains() == []
    deploy(layout, release)
    assert check_whole(repository, {1: release}) == 1


def test_a_killed_publish_of_a_release_that_is_gone_from_the_store(layout):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    repository.stage(releases[2])
    repository.switch(releases[2])
    shutil.rmtree(releases[2].path)
    assert recover(layout) == ["the publish of shop release 2 was killed: taken back"]
    assert check_whole(repository, releases) == 1


def test_domains_whose_names_begin_alike_are_told_apart(layout):
    shop, other = releases_of(layout), build_release(layout.releases("shop-2"), 1, ENCODER_KEPT[1], domain="shop-2")
    repository = LiveRepository(layout.live)
    deploy(layout, shop[1])
    repository.stage(other)
    repository.stage(shop[2])
    repository.confirm("shop")
    assert [(one.domain, one.number) for one in repository.marks.all()] == [("shop-2", 1)]
    recover(layout)
    assert repository.domains() == ["shop"]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("second", [2, 3])
def test_a_crash_at_any_operation_is_recovered_from(tmp_path, monkeypatch, done, second):
    """Also a crash while recovering: after the next one, all is as if the publish had never been asked for, or done."""
    for stop in range(1, 100):
        layout = Layout(tmp_path / f"var-{stop}")
        releases, repository = releases_of(layout), LiveRepository(layout.live)
        deploy(layout, releases[1])
        with monkeypatch.context() as patch:
            operations = crash_at(patch, stop, done=done)
            try:
                publish(repository, releases[second])
                crashed = False
            except Crash:
                crashed = True
        with monkeypatch.context() as patch:
            crash_at(patch, 1 + stop % 7, done=not done)
            try:
                recover(layout)
            except Crash:
                check_whole(repository, releases)
        recover(layout)
        assert repository.marks.all() == []
        if check_whole(repository, releases) == 1:
            assert (listed(repository, "shop_encoder"), listed(repository, "shop_topk")) == ([1], [1])
        publish(repository, releases[second])
        assert check_whole(repository, releases) == second
        if not crashed:
            assert operations() < stop
            return
    pytest.fail("the crash test never ran to the end")


def test_going_back_needs_no_room_on_the_disk(layout, monkeypatch):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    config = repository.folder / "shop" / "config.pbtxt"
    age = config.stat().st_mtime_ns
    repository.stage(releases[3])
    before = repository.ensemble_config("shop")
    repository.switch(releases[3])
    with monkeypatch.context() as patch:
        patch.setattr("serving.live_repository.write_atomically", full)
        patch.setattr("serving.unfinished.write_atomically", full)
        repository.restore("shop", before)
    assert check_whole(repository, releases) == 1
    assert config.stat().st_mtime_ns > age, "Triton takes what does not look newer for unchanged"


def test_going_back_needs_no_hard_links(layout, monkeypatch):
    """VAR/live may be a mount of its own, of a kind that has none."""
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    config = repository.folder / "shop" / "config.pbtxt"
    age = config.stat().st_mtime_ns
    repository.stage(releases[3])
    repository.switch(releases[3])

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    recover(layout)
    assert check_whole(repository, releases) == 1
    assert repository.marks.all() == []
    assert config.stat().st_mtime_ns > age, "Triton takes what does not look newer for unchanged"


def test_what_a_disk_made_of_a_copy_is_noticed(layout, monkeypatch):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    real = shutil.copytree

    def damaging(source: str | Path, target: str | Path, *others: Any, **options: Any) -> Any:
        done = real(source, target, *others, **options)
        file = next(path for path in sorted(Path(target).rglob("*")) if path.is_file())
        file.write_bytes(file.read_bytes()[:-1])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", damaging)
        with pytest.raises(PublishError, match="does not have the sha256 of the manifest"):
            repository.stage(releases[2])
    recover(layout)
    assert check_whole(repository, releases) == 1
    publish(repository, releases[2])
    assert check_whole(repository, releases) == 2


@pytest.mark.parametrize("name", ["shop_encoder/config.pbtxt", "shop/config.pbtxt", "shop_encoder/warmup/ones_16"])
def test_a_config_that_changed_after_it_was_verified_does_not_go_live(layout, name):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    (releases[3].models / name).write_bytes(b"changed")
    with pytest.raises(ReleaseError, match="sha256"):
        repository.stage(releases[3])
        repository.switch(releases[3])
    recover(layout)
    assert check_whole(repository, releases) == 1


def test_a_manifest_that_cannot_be_read_is_one_clear_error(layout):
    release = releases_of(layout)[1]
    (release.path / "manifest.json").unlink()
    (release.path / "manifest.json").mkdir()
    with pytest.raises(ReleaseError, match=r"manifest.json cannot be read: Is a directory"):
        Release(release.path).manifest  # noqa: B018


def test_a_temporary_file_of_a_killed_publish_is_removed_by_the_next(layout):
    releases, repository = releases_of(layout), LiveRepository(layout.live)
    deploy(layout, releases[1])
    left = [repository.folder / name for name in (".x.1.tmp", "shop/.config.pbtxt.1.tmp")]
    for path in left:
        write_atomically(path, b"half")
    publish(repository, releases[2])
    assert not [path for path in left if path.exists()]
