"""The real thing for every integration test: what `make` builds and starts, in folders of its own, on free ports.

There are two kinds of project. `deployed` is what a person gets from the two commands; its server is shared. Tests that
start, harm and stop servers take small projects, which differ in nothing but the encoder: it has a few kilobytes and
random weights. Each kind has a worker of its own, so that both run at once.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from project import Project, new_project
from tiny_encoders import save_encoder

SMALL_PROJECTS = (
    "test_canary",
    "test_continual",
    "test_derived_releases",
    "test_encoders",
    "test_fused",
    "test_healing",
    "test_lifecycle",
    "test_overload",
    "test_publish",
    "test_publish_faults",
    "test_release_soak",
    "test_shared_steps",
    "test_sweep",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): the tests of a group share a worker and its fixtures")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = "small projects" if item.path.stem in SMALL_PROJECTS else "shared server"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str]]:
    """The first of the two commands, run once for all tests: the project, and what a person saw."""
    project = new_project(tmp_path_factory.mktemp("var"))
    try:
        yield project, project.make("export", "deploy").stdout
    finally:
        project.make("stop", check=False)


@pytest.fixture(scope="session")
def server(deployed: tuple[Project, str]) -> Project:
    """A server that answers for the sample catalogue. Tests that stop or harm a server take `own_project` instead."""
    return deployed[0]


def with_encoder(project: Project, folder: Path, seed: int) -> Project:
    """The project with an encoder of its own."""
    folder.mkdir()
    settings = (
        f"encoder.name={save_encoder('bert', folder, seed=seed)}",
        "encoder.sha256=null",
        "encoder.max_length=64",
        "training.epochs=5",
        "export.verification_texts=48",
        "serving.length_buckets=[16,64]",
        # How little random weights know, and how busy this machine is, keeps no release back.
        "gates.accuracy_margin=1",
        "gates.ndcg_margin=1",
        "gates.latency_ratio=50",
    )
    return replace(project, settings=settings)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with release 1, that others are copied from."""
    folder = tmp_path_factory.mktemp("small")
    project = with_encoder(new_project(folder / "var"), folder / "encoder", seed=0)
    project.make("export", "PRECISION=fp32")
    return project


def copy_of(project: Project, var: Path) -> Project:
    """A second project with the same runs and releases, hard-linked, and no server."""
    copied = replace(new_project(var), settings=project.settings)
    for folder in ("releases", "runs"):
        shutil.copytree(project.var / folder, copied.var / folder, copy_function=os.link)
    return copied


@pytest.fixture
def own_project(small: Project, tmp_path: Path) -> Iterator[Project]:
    """A project with release 1 and no server yet, to start, harm and stop at will."""
    project = copy_of(small, tmp_path / "var")
    yield project
    project.make("stop", check=False)


@pytest.fixture(scope="module")
def own_server(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """As `own_project`, deployed, for the tests of one file that leave it as they found it."""
    project = copy_of(small, tmp_path_factory.mktemp("own") / "var")
    project.make("deploy")
    yield project
    project.make("stop", check=False)


@pytest.fixture(scope="session")
def two_releases(small: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project whose second release has another encoder with the same tokenizer; and what its export printed."""
    folder = tmp_path_factory.mktemp("two")
    project = with_encoder(copy_of(small, folder / "var"), folder / "encoder", seed=1)
    return project, project.make("export", "PRECISION=fp32").stdout


@pytest.fixture
def own_two_releases(two_releases: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """As `own_project`, with both releases."""
    project = copy_of(two_releases[0], tmp_path / "var")
    yield project
    project.make("stop", check=False)
