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


@pytest.fixture
def own_project(deployed: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """A second project with the same releases and no server yet, to start, harm and stop at will."""
    project = new_project(tmp_path / "var")
    for folder in ("releases", "runs"):
        shutil.copytree(deployed[0].var / folder, project.var / folder, copy_function=os.link)
    yield project
    project.make("stop", check=False)
