"""The same store on a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from feedback_contract import *  # noqa: F403 - the tests that every store has to pass
from feedback_contract import an_event
from feedback_crashes import Senders, check, harm
from feedback_server import feedback_server
from postgresql import Cluster, cluster
from sqlalchemy import text

from feedback.errors import StoreError
from feedback.location import URL_VARIABLE, Location
from feedback.store import POSTGRESQL_SETTINGS, FeedbackStore


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def location(postgresql: Cluster, tmp_path: Path) -> Location:
    return Location(tmp_path / "feedback", {URL_VARIABLE: postgresql.create_database()})


def test_every_commit_is_flushed_whatever_the_database_says(postgresql: Cluster, location: Location) -> None:
    store = FeedbackStore(location)
    store.write([an_event("a")])
    assert store._engine is not None
    with store._engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    store.close()
    store.write([an_event("b")])
    with store._engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
    store.close()


def test_a_restart_is_noticed_and_got_over(postgresql: Cluster, location: Location) -> None:
    store = FeedbackStore(location)
    store.write([an_event("a")])
    postgresql.stop()
    with pytest.raises(StoreError, match="onnection"):
        store.write([an_event("b")])
    postgresql.start()
    assert store.write([an_event("a"), an_event("b")]) == [False, True]
    postgresql.stop("fast")
    postgresql.start()
    assert store.write([an_event("c")]) == [True], "the connection that was cut is replaced within the call"
    store.close()


def test_another_writer_that_hangs_holds_nobody_up_for_long(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = FeedbackStore(location), FeedbackStore(location)
    store.write([])
    monkeypatch.setitem(POSTGRESQL_SETTINGS, "lock_timeout", "100ms")
    other.write([])
    assert store._engine is not None
    with store._engine.begin() as connection:
        connection.execute(text("LOCK TABLE feedback_events"))
        with pytest.raises(StoreError, match="lock timeout"):
            other.write([an_event("a")])
    assert other.write([an_event("a")]) == [True]
    store.close()
    other.close()


def test_a_restart_under_load_loses_nothing_that_was_acknowledged(
    postgresql: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, postgresql.create_database())
    server = feedback_server(tmp_path / "var")
    server.start()
    try:
        senders = Senders(server.url)
        harm(senders, 2, postgresql.stop, postgresql.start)
        check(server, senders)
        assert not server.location.file.exists()
        command = " ".join(part for part in server.process("tritonserver").cmdline())
        assert postgresql.password not in command
    finally:
        server.stop()
