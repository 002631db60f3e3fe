"""What tests of the live repository share: publishing as a deploy does, and crashes between any two operations."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import content_of

from serving.live_repository import LiveRepository, parse_config
from serving.releases import Release
from serving.unfinished import Intent

ENCODER_KEPT = {
    1: {"encoder": (1, "e1"), "topk": (1, "t1")},
    2: {"encoder": (1, "e1"), "topk": (2, "t2")},
    3: {"encoder": (3, "e3"), "topk": (3, "t3")},
}


def publish(repository: LiveRepository, release: Release) -> list[str]:
    """What a deploy does to the folder; keeps what was live before, one step away."""
    domain = release.manifest.domain
    before = repository.live_release(domain)
    changed = repository.stage(release)
    repository.marks.intend(domain, release.number, Intent(verb="deploy"))
    repository.switch(release)
    repository.confirm(domain)
    now = repository.live_release(domain)
    repository.retire(domain, [one for one in (now, before) if one is not None])
    return changed


def check_whole(repository: LiveRepository, releases: dict[int, Release], domain: str = "shop") -> int:
    """What the ensemble pins is there, complete, listed by each step's config, and of one release; returns which."""
    live = repository.live_release(domain)
    assert live is not None
    release = releases[live.number]
    assert live.versions == {step.model: step.version for step in release.manifest.steps.values()}
    for model, version in {**live.versions, domain: live.number}.items():
        folder = repository.folder / model
        assert content_of(folder / str(version)) == content_of(release.models / model / str(version)), model
        assert version in listed(repository, model)
    return live.number


def listed(repository: LiveRepository, model: str) -> list[int]:
    config = parse_config((repository.folder / model / "config.pbtxt").read_text())
    return list(config.version_policy.specific.versions)


class Crash(BaseException):
    """Nothing handles it, as nothing handles a power cut."""


def crash_at(monkeypatch: pytest.MonkeyPatch, stop: int, *, done: bool) -> Callable[[], int]:
    """Let the operation number `stop` on the file system be the last; with `done`, after it happened, else half-way."""
    count = 0

    def wrap(owner: Any, name: str, half: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def operation(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            number = count  # an operation on a folder holds others
            if number == stop and not done:
                half(*arguments)
                raise Crash
            result = real(*arguments, **options)
            if number == stop:
                raise Crash
            return result

        monkeypatch.setattr(owner, name, operation)

    def half_copied(source: str | Path, target: str | Path, *_: Any) -> None:
        Path(target).mkdir(parents=True)
        shutil.copy2(next(path for path in Path(source).rglob("*") if path.is_file()), target)

    def half_removed(folder: str | Path, *_: Any) -> None:
        os.unlink(next(path for path in Path(folder).rglob("*") if path.is_file()))  # noqa: PTH108 - Path's is wrapped

    wrap(shutil, "copytree", half_copied)
    wrap(shutil, "rmtree", half_removed)
    for name in ("rename", "replace", "unlink"):
        wrap(Path, name, lambda *_: None)
    return lambda: count


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
