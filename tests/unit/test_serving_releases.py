"""Releases on disk: files, manifests, and which folders count."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import build_release, content_of

from serving.errors import ReleaseError, ServingError
from serving.files import remove, rename_into_place, sha256_of, write_atomically
from serving.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from serving.releases import Release, ReleaseStore

STEPS = {"encoder": (1, "a"), "topk": (1, "a")}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return build_release(tmp_path / "releases", 1, STEPS)


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_release_verifies_and_reads_back(release):
    manifest = Manifest.read(release.path)
    manifest.verify(release.path)
    assert manifest == release.manifest
    assert manifest.steps["encoder"].model == "shop_encoder"
    assert MANIFEST_NAME not in manifest.files
    assert set(manifest.files) == set(content_of(release.path)) - {MANIFEST_NAME}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.data())
def test_any_changed_file_is_found(release, data):
    name = data.draw(st.sampled_from(sorted(release.manifest.files)))
    path = release.path / name
    before = path.read_bytes()
    after = data.draw(st.binary(max_size=80).filter(lambda content: content != before))
    path.write_bytes(after)
    try:
        with pytest.raises(ReleaseError, match="sha256") as caught:
            release.manifest.verify(release.path)
        assert name in caught.value.message
    finally:
        path.write_bytes(before)


def test_every_missing_file_is_found(release):
    for name in release.manifest.files:
        path = release.path / name
        before = path.read_bytes()
        path.unlink()
        with pytest.raises(ReleaseError, match=f"{name} is missing"):
            release.manifest.verify(release.path)
        path.write_bytes(before)
    release.manifest.verify(release.path)


@pytest.mark.parametrize("extra", ["more.bin", "models/shop_encoder/1/steps/more.py", "models/shop_topk/2/model.bin"])
def test_an_extra_file_is_found(release, extra):
    (release.path / extra).parent.mkdir(exist_ok=True)
    (release.path / extra).write_bytes(b"")
    with pytest.raises(ReleaseError, match=f"{extra} is not in the manifest"):
        release.manifest.verify(release.path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"schema_version": 1}'],
)
def test_an_unreadable_manifest_is_one_clear_line(release, content):
    (release.path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ReleaseError, match=r"manifest\.json") as caught:
        Manifest.read(release.path)
    assert "\n" not in caught.value.message
    assert "export" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"release": 0}, "release"),
        ({"release": "first"}, "release"),
        ({"surprise": 1}, "surprise"),
        ({"steps": {"encoder": {"model": "m", "version": 0, "digest": "d"}}}, "steps.encoder.version"),
        ({"files": ["a"]}, "files"),
    ],
)
def test_a_wrong_field_is_named(release, changes, where):
    change_manifest(release.path, **changes)
    with pytest.raises(ReleaseError, match=where):
        Manifest.read(release.path)


@pytest.mark.parametrize("extra", [{}, {"engines": {"gpu": "some"}}])
def test_a_newer_schema_version_is_refused_as_such(release, extra):
    """A newer version writes fields that this one does not know; the version is what has to be said."""
    change_manifest(release.path, schema_version=SCHEMA_VERSION + 1, **extra)
    with pytest.raises(ReleaseError, match=f"schema version {SCHEMA_VERSION + 1}"):
        Manifest.read(release.path)


def test_a_release_under_another_number_is_refused(release):
    """Its ensemble's version folder has its own number: under another one it can never be loaded."""
    moved = release.path.rename(release.path.with_name("4"))
    with pytest.raises(ServingError, match="4"):
        Release(moved).manifest.verify(moved)


def test_the_store_finds_releases_by_number(tmp_path):
    store = ReleaseStore(tmp_path / "releases")
    assert store.numbers() == []
    with pytest.raises(ReleaseError, match="make export"):
        store.latest()
    for number in (2, 10, 1):
        build_release(store.folder, number, STEPS)
    assert store.numbers() == [1, 2, 10]
    assert store.latest().number == 10
    assert store.open(2).manifest.release == 2
    with pytest.raises(ReleaseError, match=r"no release 3 .*1, 2, 10"):
        store.open(3)


@pytest.mark.parametrize("name", [".2.tmp-123", ".lock", "2.tmp", "two", "-2", "2.5", ".graphs-abc"])
def test_folders_of_other_names_are_no_releases(tmp_path, name):
    build_release(tmp_path, 1, STEPS).path.rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / name)
    (tmp_path / "3").write_text("a file")
    assert ReleaseStore(tmp_path).numbers() == []


def test_a_folder_without_a_manifest_is_no_release(tmp_path):
    """The manifest is written last; `numbers` promises that half-written releases do not count."""
    build_release(tmp_path, 1, STEPS)
    (build_release(tmp_path, 2, STEPS).path / MANIFEST_NAME).unlink()
    store = ReleaseStore(tmp_path)
    assert store.numbers() == [1]
    assert store.latest().number == 1


@pytest.mark.parametrize("name", ["007", "٣"])
def test_a_number_written_otherwise_is_no_release_or_opens(tmp_path, name):
    build_release(tmp_path, 7, STEPS).path.rename(tmp_path / name)
    store = ReleaseStore(tmp_path)
    for number in store.numbers():
        assert store.open(number).manifest


def test_an_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert content_of(tmp_path) == {"new/file.json": b"two"}


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_failed_atomic_write_keeps_the_old_content_and_no_leftover(tmp_path, monkeypatch, operation):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if operation == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(content_of(tmp_path)) == ["file.json"]


def test_a_folder_is_never_renamed_over_another(tmp_path):
    for name in ("staged", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    with pytest.raises(FileExistsError, match="final"):
        rename_into_place(tmp_path / "staged", tmp_path / "final")
    rename_into_place(tmp_path / "staged", tmp_path / "other")
    assert content_of(tmp_path) == {"final/content": b"final", "other/content": b"staged"}


def test_remove_takes_files_folders_and_links_but_not_what_they_point_to(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link", "dead", "nothing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@given(st.binary(max_size=200))
def test_sha256_is_that_of_the_content(content):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        assert sha256_of(Path(file.name)) == hashlib.sha256(content).hexdigest()
