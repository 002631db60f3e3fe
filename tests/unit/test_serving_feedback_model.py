"""The feedback model in the live repository where Triton refuses it, or its config is damaged."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from feedback.location import URL_VARIABLE
from serving import feedback_model
from serving.errors import PublishError
from serving.feedback_model import MODEL, stage_feedback, store_in_use
from serving.layout import Layout


@pytest.fixture
def staged(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "var")
    stage_feedback(layout)
    return layout


def refusing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InferenceServerException("failed to load")

    client = SimpleNamespace(load_model=refuse, is_model_ready=lambda *_, **__: True)
    monkeypatch.setattr(feedback_model.grpc, "InferenceServerClient", lambda *_, **__: nullcontext(client))


def other_instances(layout: Layout) -> bytes:
    """The config in the live repository is not what a deploy would write."""
    path = layout.live / MODEL / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 2"))
    return path.read_bytes()


def test_a_model_that_triton_refuses_is_put_back(staged: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    before = other_instances(staged)
    refusing_server(monkeypatch)
    with pytest.raises(PublishError, match=r"Triton refuses feedback: failed to load$"):
        feedback_model.publish_feedback(staged, "url")
    assert (staged.live / MODEL / "config.pbtxt").read_bytes() == before


@pytest.mark.parametrize("first", [False, True])
def test_a_refused_model_that_cannot_be_put_back_is_one_clear_error(
    staged: Layout, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if first:
        shutil.rmtree(staged.live / MODEL)
    else:
        other_instances(staged)
    refusing_server(monkeypatch)
    staging = feedback_model.stage_feedback

    def stage(layout: Layout) -> bool:
        done = staging(layout)
        monkeypatch.setattr(feedback_model, "write_atomically", full)
        monkeypatch.setattr(Path, "unlink", full)
        return done

    monkeypatch.setattr(feedback_model, "stage_feedback", stage)
    with pytest.raises(PublishError, match=r"Triton refuses feedback: failed to load; and .* be put back: No space"):
        feedback_model.publish_feedback(staged, "url")


def test_an_emptied_config_is_written_anew(staged: Layout) -> None:
    path = staged.live / MODEL / "config.pbtxt"
    before = path.read_bytes()
    path.write_bytes(b"")
    assert stage_feedback(staged)
    assert path.read_bytes() == before


@contextmanager
def a_server(**environment: str) -> Iterator[int]:
    """A process that was started with an environment of its own."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as process:
        yield process.pid


def test_the_servers_store_is_named_and_another_one_that_commands_read_beside_it(
    staged: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, url = staged, "postgresql://me:secret-word@db/shop?sslpassword=secret-word"
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    file, database = f"sqlite+pysqlite:///{layout.feedback}/events.sqlite", "postgresql+psycopg://me:***@db/shop"
    with a_server() as pid:
        assert store_in_use(layout, pid) == file
        monkeypatch.setenv(URL_VARIABLE, url)
        assert store_in_use(layout, pid).startswith(f"{file}; COMMANDS HERE READ {database}: {URL_VARIABLE} differs")
    with a_server(**{URL_VARIABLE: url}) as pid:
        assert store_in_use(layout, pid) == database
        monkeypatch.delenv(URL_VARIABLE)
        assert store_in_use(layout, pid).startswith(f"{database}; COMMANDS HERE READ {file}")
        layout.feedback.mkdir(parents=True)
        (layout.feedback / "url").write_text(url)
        assert store_in_use(layout, pid) == database, "one and the same, however it is named"
    (layout.feedback / "url").write_text("secret-word")
    with a_server() as pid:
        assert "secret-word" not in store_in_use(layout, pid)


def test_the_store_of_a_var_that_was_moved_under_its_server_is_the_one_that_the_server_goes_by(
    staged: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    moved = Layout(staged.var.rename(staged.var.with_name("moved")))
    with a_server() as pid:
        said = store_in_use(moved, pid)
        assert said.startswith(f"sqlite+pysqlite:///{staged.feedback}/events.sqlite; COMMANDS HERE READ sqlite")
        assert f"{moved.feedback}/events.sqlite: the server goes by {staged.feedback}" in said
        assert said.endswith("run `make stop start`")
        shutil.rmtree(moved.live / MODEL)
        assert "cannot be named" in store_in_use(moved, pid)
