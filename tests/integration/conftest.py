"""The real thing for every integration test: `make export deploy` into a folder of its own, on free ports."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project, new_project


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


FEWER_TEXTS = "SET=export.verification_texts=48"  # the first release is verified in full; these need not be


def copy_of(project: Project, var: Path) -> Project:
    """A second project with the same runs and releases, hard-linked, and no server."""
    copied = new_project(var)
    for folder in ("releases", "runs"):
        shutil.copytree(project.var / folder, copied.var / folder, copy_function=os.link)
    return copied


@pytest.fixture
def own_project(deployed: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """A project with release 1 and no server yet, to start, harm and stop at will."""
    project = copy_of(deployed[0], tmp_path / "var")
    yield project
    project.make("stop", check=False)


@pytest.fixture(scope="module")
def own_server(deployed: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """As `own_project`, deployed, for the tests of one file that leave it as they found it."""
    project = copy_of(deployed[0], tmp_path_factory.mktemp("own") / "var")
    project.make("deploy")
    yield project
    project.make("stop", check=False)


@pytest.fixture(scope="session")
def two_releases(deployed: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project whose second release has an encoder of another precision; and what the export of that printed."""
    project = copy_of(deployed[0], tmp_path_factory.mktemp("two") / "var")
    return project, project.make("export", "PRECISION=fp32", FEWER_TEXTS).stdout


@pytest.fixture
def own_two_releases(two_releases: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """As `own_project`, with both releases."""
    project = copy_of(two_releases[0], tmp_path / "var")
    yield project
    project.make("stop", check=False)
