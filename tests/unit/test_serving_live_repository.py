"""The live repository over sequences of releases, with a crash between any two of its operations."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_repository_helpers import ENCODER_KEPT, Crash, check_whole, crash_at, full, listed, publish
from serving_helpers import build_release, content_of

from serving.errors import PublishError
from serving.live_repository import LiveRelease, LiveRepository
from serving.releases import Release


def versions(repository: LiveRepository, model: str) -> set[int]:
    return {int(path.name) for path in (repository.folder / model).iterdir() if path.name.isdecimal()}


def build_all(folder: Path, plan: dict[int, dict[str, tuple[int, str]]], **options: Any) -> dict[int, Release]:
    return {number: build_release(folder, number, steps, **options) for number, steps in plan.items()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def repository(tmp_path: Path) -> LiveRepository:
    return LiveRepository(tmp_path / "live")


@pytest.fixture
def releases(tmp_path: Path) -> dict[int, Release]:
    return build_all(tmp_path / "releases", ENCODER_KEPT)


def test_an_empty_folder_has_nothing_live(repository):
    assert repository.domains() == []
    assert repository.live_release("shop") is None


def test_staging_changes_nothing_that_answers(repository, releases):
    assert repository.stage(releases[1]) == ["shop_encoder", "shop_topk"]
    assert repository.live_release("shop") is None
    assert repository.domains() == []
    assert repository.ensemble_config("shop") is None
    repository.switch(releases[1])
    assert repository.domains() == ["shop"]
    config = (repository.folder / "shop" / "config.pbtxt").read_bytes()
    assert repository.stage(releases[2]) == ["shop_topk"]
    assert (repository.folder / "shop" / "config.pbtxt").read_bytes() == config
    assert listed(repository, "shop_topk") == [1, 2]
    assert check_whole(repository, releases) == 1


def test_warm_up_data_comes_along(repository, releases):
    repository.stage(releases[1])
    assert (repository.folder / "shop_encoder" / "warmup" / "ones_16").read_bytes() == b"\1" * 16


def test_releases_follow_each_other_and_the_one_before_stays(repository, releases):
    for number, encoders, topks in ((1, {1}, {1}), (2, {1}, {1, 2}), (3, {1, 3}, {2, 3}), (2, {1, 3}, {2, 3})):
        publish(repository, releases[number])
        assert check_whole(repository, releases) == number
        assert (versions(repository, "shop_encoder"), versions(repository, "shop_topk")) == (encoders, topks)
    publish(repository, releases[1])  # its folders were retired: they come back
    assert check_whole(repository, releases) == 1
    assert not list(repository.folder.rglob(".*"))


def test_a_step_that_did_not_change_is_not_touched(repository, releases):
    publish(repository, releases[1])
    before = times(repository.folder / "shop_encoder")
    assert publish(repository, releases[2]) == ["shop_topk"]
    assert times(repository.folder / "shop_encoder") == before


def test_a_step_that_changed_once_is_not_touched_by_the_release_after(repository, tmp_path):
    """Triton reloads a model whose files look newer; so a kept step's config must stay, whatever it lists besides."""
    plan = {n: {"encoder": (min(n, 2), f"e{min(n, 2)}"), "topk": (n, f"t{n}")} for n in (1, 2, 3, 4)}
    releases = build_all(tmp_path / "releases", plan)
    for number in (1, 2):
        publish(repository, releases[number])
    config = repository.folder / "shop_encoder" / "config.pbtxt"
    before = (config.stat().st_mtime_ns, times(repository.folder / "shop_encoder" / "2"))
    for number in (3, 4):
        assert publish(repository, releases[number]) == ["shop_topk"]
        assert (config.stat().st_mtime_ns, times(repository.folder / "shop_encoder" / "2")) == before
        check_whole(repository, releases)


def test_publishing_again_changes_nothing(repository, releases):
    for number in (1, 3, 3):
        publish(repository, releases[number])
    before = times(repository.folder)
    assert publish(repository, releases[3]) == []
    assert times(repository.folder) == before


def test_switch_can_be_undone(repository, releases):
    publish(repository, releases[1])
    repository.stage(releases[2])
    before = repository.ensemble_config("shop")
    repository.switch(releases[2])
    repository.restore("shop", before)
    assert check_whole(repository, releases) == 1
    repository.restore("shop", None)
    assert repository.live_release("shop") is None
    repository.restore("shop", None)


plans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(plans, st.lists(st.integers(0, 9), max_size=6))
def test_any_sequence_of_releases_keeps_what_is_pinned(tmp_path_factory, plan, jumps):
    folder = tmp_path_factory.mktemp("sequence")
    steps: dict[str, tuple[int, str]] = {"encoder": (1, "e1"), "topk": (1, "t1")}
    releases = {}
    for number, changes in enumerate(plan, start=1):
        for step, changed in zip(steps, changes, strict=True):
            if changed:
                steps[step] = (number, f"{step}{number}")
        releases[number] = build_release(folder / "releases", number, dict(steps))
    repository = LiveRepository(folder / "live")
    previous = None
    for number in [*releases, *(1 + jump % len(plan) for jump in jumps)]:
        publish(repository, releases[number])
        assert check_whole(repository, releases) == number
        if previous is not None:  # one step away
            for step in releases[previous].manifest.steps.values():
                assert step.version in versions(repository, step.model)
        previous = number


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2), (3, 1)])
def test_a_crash_between_any_two_operations_leaves_a_whole_repository(tmp_path, monkeypatch, done, first, second):
    releases = build_all(tmp_path / "releases", ENCODER_KEPT)
    for stop in range(1, 100):
        repository = LiveRepository(tmp_path / f"live-{stop}")
        for number in (1, first):
            publish(repository, releases[number])
        with monkeypatch.context() as patch:
            operations = crash_at(patch, stop, done=done)
            try:
                publish(repository, releases[second])
                crashed = False
            except Crash:
                crashed = True
        assert check_whole(repository, releases) in {first, second}
        publish(repository, releases[second])
        assert check_whole(repository, releases) == second
        if not crashed:
            assert operations() < stop
            return
    pytest.fail("the crash test never ran to the end")


def test_a_release_half_removed_by_a_crash_comes_back_whole(tmp_path, monkeypatch):
    """A crash while old folders are removed must not leave one that looks complete: the next rollback would pin it."""
    releases = build_all(tmp_path / "releases", ENCODER_KEPT)
    for stop in range(1, 100):
        repository = LiveRepository(tmp_path / f"live-{stop}")
        for number in (1, 2):
            publish(repository, releases[number])
        with monkeypatch.context() as patch:
            operations = crash_at(patch, stop, done=False)
            with contextlib.suppress(Crash):
                publish(repository, releases[3])
        publish(repository, releases[1])
        assert check_whole(repository, releases) == 1
        if operations() < stop:
            return


@pytest.mark.parametrize(
    ("owner", "name"), [(shutil, "copytree"), (shutil, "copyfile"), (os, "fsync"), (Path, "rename"), (Path, "replace")]
)
def test_a_full_disk_while_staging_is_one_clear_error(repository, releases, monkeypatch, owner, name):
    publish(repository, releases[1])
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(PublishError, match="No space left on device") as caught:
            repository.stage(releases[3])
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert check_whole(repository, releases) == 1
    publish(repository, releases[3])
    assert check_whole(repository, releases) == 3


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_while_switching_is_one_clear_error(repository, releases, monkeypatch, name):
    publish(repository, releases[1])
    repository.stage(releases[3])
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), full)
        with pytest.raises(PublishError, match="No space left on device"):
            repository.switch(releases[3])
    assert check_whole(repository, releases) == 1


def test_a_full_disk_is_not_left_fuller(repository, releases, monkeypatch):
    publish(repository, releases[1])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(PublishError):
            repository.stage(releases[3])
    assert [path.name for path in repository.folder.rglob(".*")] == [".publishing-shop-3"]


def test_a_release_made_anew_under_an_old_number_is_not_mixed_with_the_old(tmp_path, repository):
    """`var/releases` was removed and exported again: version folders of the same name hold other weights."""
    old = build_release(tmp_path / "old", 1, {"encoder": (1, "old"), "topk": (1, "old")})
    new = build_release(tmp_path / "new", 1, {"encoder": (1, "new"), "topk": (1, "new")})
    publish(repository, old)
    try:
        publish(repository, new)
    except PublishError as error:
        assert "1" in error.message
        check_whole(repository, {1: old})
    else:
        check_whole(repository, {1: new})


def test_a_step_that_two_domains_share_is_kept_for_both(tmp_path, repository):
    """DESIGN: a domain with a frozen encoder may share another's."""
    shop = build_all(tmp_path / "shop", {n: {"encoder": (n, f"e{n}"), "topk": (n, f"t{n}")} for n in (1, 2, 3)})
    news = {
        1: build_release(tmp_path / "news", 1, {"encoder": (1, "e1"), "topk": (1, "n1")}, domain="news", shared="shop")
    }
    publish(repository, shop[1])
    publish(repository, news[1])
    for number in (2, 3):
        publish(repository, shop[number])
        assert check_whole(repository, shop) == number
        assert check_whole(repository, news, "news") == 1
    assert repository.domains() == ["news", "shop"]


def test_steps_that_no_release_has_any_more_go_when_they_are_two_steps_away(tmp_path, repository):
    """As when a domain that was served in several steps is served in one."""
    plans = [ENCODER_KEPT[1], {"fused": (2, "f2")}, {"fused": (3, "f3")}]
    made = [build_release(tmp_path / "releases", number, plan) for number, plan in enumerate(plans, start=1)]
    other = build_release(tmp_path / "others", 1, ENCODER_KEPT[1], domain="news")
    publish(repository, other)
    publish(repository, made[0])
    publish(repository, made[1])
    assert versions(repository, "shop_encoder") == {1}, "one step away"
    before = repository.live_release("shop")
    repository.stage(made[2])
    repository.switch(made[2])
    repository.confirm("shop")
    now = repository.live_release("shop")
    assert repository.retire("shop", [now, before]) == ["shop_encoder", "shop_topk"]
    assert {path.name for path in repository.folder.iterdir()} == {
        *("news", "news_encoder", "news_topk"),
        *("shop", "shop_fused"),
    }
    check_whole(repository, {1: other}, "news")
    check_whole(repository, {3: made[2]})


def test_what_no_release_brought_is_passed_over_and_a_step_that_was_shared_is_not(tmp_path, repository):
    """VAR/live may be a mount of its own, with models of the operator's."""
    others = ("lost+found", "fraud_head", "shop_reranker", "encoder_large", "translator/1", "elsewhere/configs")
    for name in (*others, "encoder_0123456789ab/1", "shop_canary/2"):
        (repository.folder / name).mkdir(parents=True)
        (repository.folder / name / "model.py").write_text("of others")
    kept = {name: content_of(repository.folder / name) for name in others}
    for number, release in build_all(tmp_path / "releases", ENCODER_KEPT).items():
        publish(repository, release)
        assert {name: content_of(repository.folder / name) for name in others} == kept, number
    left = {path.name for path in repository.folder.iterdir()}
    assert left == {*(name.partition("/")[0] for name in others), "shop", "shop_encoder", "shop_topk"}


def test_nothing_is_retired_that_a_release_to_keep_pins(repository, releases):
    for number in (1, 2, 3):
        repository.stage(releases[number])
    repository.switch(releases[3])
    keep = [LiveRelease(number, {"shop_encoder": 1, "shop_topk": number}) for number in (1, 2)]
    live = repository.live_release("shop")
    assert live is not None
    repository.retire("shop", [*keep, live])
    assert versions(repository, "shop_topk") == {1, 2, 3}
    repository.retire("shop", [live])
    assert (versions(repository, "shop_topk"), versions(repository, "shop_encoder")) == ({3}, {3})
    assert versions(repository, "shop") == {3}
    assert check_whole(repository, releases) == 3
