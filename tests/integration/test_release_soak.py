"""The short form of release_soak.py, and that it would notice an answer made of two releases."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project, new_project
from release_askers import Askers
from release_soak import Soak

from serving.deploy import deploy
from serving.files import sha256_of
from serving.releases import Release
from serving.server import Server


@pytest.fixture
def soak(small: Project, tmp_path: Path) -> Iterator[Soak]:
    made = Soak(new_project(tmp_path / "var"), Release(small.var / "releases" / small.domain / "1"), quiet_seconds=0.3)
    yield made
    Server(made.layout).stop()


def test_releases_under_callers(soak: Soak) -> None:
    soak.run(3, callers=4, pause=0.02, flip_every=3)
    assert not soak.check()
    assert {one.release for one in soak.asked} == {"1", "2", "3", "4"}
    assert len(soak.switches) == 3
    assert len(soak.flips) == 2
    assert "failed or mixed: 0" in soak.report()

    # The head of release 2 in release 5, whose encoder and items have another order.
    askers = Askers(soak.project.grpc_url)
    askers.learn()
    mixed = soak.marker.make(5)
    head = mixed.models / "ecommerce_head" / "5" / "model.onnx"
    shutil.copy2(soak.layout.releases("ecommerce") / "2/models/ecommerce_head/2/model.onnx", head)
    files = {**mixed.manifest.files, head.relative_to(mixed.path).as_posix(): sha256_of(head)}
    mixed.manifest.model_copy(update={"files": files}).write(mixed.path)
    deploy(soak.layout, Release(mixed.path), soak.endpoints, gates=None)
    with askers.asking(threads=1, tasks=1):
        while len(askers.asked) < 20:
            time.sleep(0.02)
    assert all(one.failure.startswith("mixed: release 5: scores are off by") for one in askers.asked[:20])
