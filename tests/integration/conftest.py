"""The real thing for every integration test: what `make` builds and starts, in folders of its own, on free ports.

There are two kinds of project. `deployed` is what a person gets from the two commands; its server is shared. Tests that
start, harm and stop servers take small projects, which differ in nothing but the encoder: it has a few kilobytes and
random weights.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from project import ROOT, Project, copy_of, new_project, run_command, with_encoder
from pydantic import TypeAdapter

from export.__main__ import main as export
from training.cli import main as train

Made = TypeVar("Made")


def made_once(factory: pytest.TempPathFactory, name: str, kind: type[Made], make: Callable[[Path], Made]) -> Made:
    """What `make` makes in an empty folder: the first worker that comes calls it, the others wait for the result."""
    root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    result, adapter = root / f"{name}.json", TypeAdapter(kind)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.is_file():
            (root / name).mkdir()
            result.write_bytes(adapter.dump_json(make(root / name)))
        return adapter.validate_json(result.read_bytes())


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


def exported(project: Project) -> str:
    """What `make export` does, and what it prints."""
    where = ("--config", ROOT / "configs/ecommerce.yaml", "--data", ROOT / "data", "--var", project.var)
    printed = run_command(train, "train", *where, *project.settings)
    return printed + run_command(export, *where, "--precision", "fp32", *project.settings)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with release 1, that others are copied from."""

    def make(folder: Path) -> Project:
        project = with_encoder(new_project(folder / "var"), folder / "encoder", seed=0)
        exported(project)
        return project

    return made_once(tmp_path_factory, "small", Project, make)


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

    def make(folder: Path) -> tuple[Project, str]:
        project = with_encoder(copy_of(small, folder / "var"), folder / "encoder", seed=1)
        return project, exported(project)

    return made_once(tmp_path_factory, "two_releases", tuple[Project, str], make)


@pytest.fixture
def own_two_releases(two_releases: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """As `own_project`, with both releases."""
    project = copy_of(two_releases[0], tmp_path / "var")
    yield project
    project.make("stop", check=False)
