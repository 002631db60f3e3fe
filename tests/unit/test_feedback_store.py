"""The embedded store: what every store does, and what only a file can suffer."""

import os
import resource
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from feedback_contract import *  # noqa: F403 - the tests that every store has to pass
from feedback_contract import an_event, raw

from feedback.__main__ import main
from feedback.erasure import erase_older_than, erase_people
from feedback.errors import StoreError
from feedback.location import KEY_VARIABLE, URL_VARIABLE, Location
from feedback.reader import FeedbackReader
from feedback.store import FeedbackStore


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "feedback", {})


def test_only_the_owner_can_read_store_and_key(location):
    store = FeedbackStore(location)
    store.write([an_event("a")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in location.folder.iterdir()}
    assert set(modes) == {"events.sqlite", "events.sqlite-wal", "events.sqlite-shm", "user-id.key"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(location.folder.stat().st_mode) == 0o700
    store.close()


def test_every_commit_is_flushed(location):
    store = FeedbackStore(location)
    store.write([an_event("a")])
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
    store.close()


def test_a_locked_store_refuses_in_time_and_works_again(location, monkeypatch):
    monkeypatch.setattr("feedback.store.LOCK_SECONDS", 0.1)
    store = FeedbackStore(location)
    store.write([an_event("a")])
    other = sqlite3.connect(location.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        with pytest.raises(StoreError, match="database is locked; nothing was acknowledged"):
            FeedbackStore(location).write([an_event("b")])
    other.execute("ROLLBACK")
    other.close()
    assert store.write([an_event("a"), an_event("b")]) == [False, True]
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "page"])
def test_a_damaged_file_is_refused_and_left_alone(location, damage):
    store = FeedbackStore(location)
    store.write([an_event(f"{number}", instruction="x" * 100) for number in range(500)])
    store.close()
    content = location.file.read_bytes()
    content = b"no database" * 500 if damage == "garbage" else content[:8_192] + b"\xff" * (len(content) - 8_192)
    location.file.write_bytes(content)
    with pytest.raises(StoreError, match=r"malformed|not a database"):
        store.write([an_event("new"), an_event("7")])
    assert location.file.read_bytes() == content
    with pytest.raises(StoreError, match=r"malformed|not a database|damaged"), FeedbackReader(location) as reader:
        reader.check()
    location.file.rename(location.file.with_suffix(".damaged"))
    assert store.write([an_event("new")]) == [True], "once the file is out of the way, it goes on"
    store.close()


def test_a_file_moved_away_takes_no_acknowledged_event_with_it(location):
    """SQLite goes on writing into a file that has lost its name."""
    store = FeedbackStore(location)
    store.write([an_event("a")])
    for path in location.folder.glob("events.sqlite*"):
        path.unlink()
    assert store.write([an_event("b")]) == [True]
    assert [row["event_id"] for row in raw(location)] == ["b"]
    store.close()


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from feedback_contract import an_event
from feedback.errors import StoreError
from feedback.location import Location
from feedback.store import FeedbackStore
store = FeedbackStore(Location(Path(sys.argv[1]), {}))
store.write([an_event("before")])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
acknowledged = 0
try:
    for number in range(500):
        store.write([an_event(f"{number}", instruction="x" * 5_000)])
        acknowledged += 1
except StoreError as error:
    print(acknowledged, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.write([an_event("before"), an_event("after")]))
"""


def test_a_full_disk_refuses_and_loses_nothing(location):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL, location.folder, tests],
        cwd=tests.parent,
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    refused, after = done.stdout.splitlines()
    acknowledged = int(refused.split()[0])
    assert 0 < acknowledged < 500
    assert "disk" in refused
    assert after == "[False, True]"
    ids = [row["event_id"] for row in raw(location)]
    assert ids == ["before", *map(str, range(acknowledged)), "after"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/feedback"):
        FeedbackStore(Location(tmp_path / "file" / "feedback", {})).write([])


def test_a_lost_key_is_noticed(location):
    FeedbackStore(location).write([an_event("a", user_id="anna")])
    location.key_file.unlink()
    with pytest.raises(StoreError, match="another key of user ids"):
        FeedbackStore(location).write([an_event("b", user_id="anna")])


def test_a_named_key_makes_the_same_people_elsewhere(tmp_path):
    key = tmp_path / "key"
    key.write_text("k" * 40)
    hashes = set()
    for name in ("one", "two"):
        location = Location(tmp_path / name, {KEY_VARIABLE: str(key)})
        FeedbackStore(location).write([an_event("a", user_id="anna")])
        hashes.add(raw(location)[0]["user_hash"])
        assert not (location.folder / "user-id.key").exists()
    assert len(hashes) == 1


@pytest.mark.parametrize(("content", "message"), [("short", "has 5 bytes"), (None, "cannot be read")])
def test_a_bad_key_is_refused(tmp_path, content, message):
    key = tmp_path / "key"
    if content:
        key.write_text(content)
    with pytest.raises(StoreError, match=message):
        FeedbackStore(Location(tmp_path / "f", {KEY_VARIABLE: str(key)})).write([])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret-word@db/shop", "mysql; feedback goes to SQLite or PostgreSQL"),
        ("secret-word", "no database URL"),
        ("sqlite://", "without a file"),
        ("sqlite:///:memory:", "without a file"),
        ("postgresql://me:secret-word@127.0.0.1:1/shop", "127.0.0.1:1/shop.*onnection"),
        ("postgresql://me:secret-word@127.0.0.1:port/shop", "no database URL"),
    ],
)
@pytest.mark.parametrize("named_by", ["environment", "file"])
def test_a_url_that_does_not_work_is_named_without_its_password(tmp_path, url, message, named_by):
    location = Location(tmp_path, {URL_VARIABLE: url} if named_by == "environment" else {})
    if named_by == "file":
        location.url_file.write_text(url + "\n")
    for use in (lambda: FeedbackStore(location).write([]), lambda: FeedbackReader(location)):
        with pytest.raises(StoreError, match=message) as caught:
            use()
        assert "secret-word" not in str(caught.value)


def test_a_sqlite_url_names_another_file(tmp_path):
    location = Location(tmp_path / "feedback", {URL_VARIABLE: f"sqlite:///{tmp_path}/else/where.db"})
    FeedbackStore(location).write([an_event("a")])
    assert (tmp_path / "else" / "where.db").is_file()
    with FeedbackReader(location) as reader:
        assert reader.watermark() == 1


def test_an_error_of_the_database_holds_nobodys_words(location):
    store = FeedbackStore(location)
    store.write([])
    with sqlite3.connect(location.file) as other:
        other.execute("DROP TABLE feedback_events")
    with pytest.raises(StoreError) as caught:
        store.write([an_event("a", instruction="a private wish")])
    assert "private" not in str(caught.value)
    store.close()


def test_a_reader_cannot_write_and_says_when_there_is_nothing(location):
    with pytest.raises(StoreError, match="there is no feedback yet"):
        FeedbackReader(location)
    assert not location.folder.exists()
    FeedbackStore(location).write([an_event("a")])
    reader = FeedbackReader(location)
    with reader._connection() as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("DELETE FROM feedback_events")
    reader.close()


def test_the_command_shows_counts(tmp_path, monkeypatch):
    for name in (URL_VARIABLE, KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    empty = CliRunner().invoke(main, ["--var", str(tmp_path)])
    assert empty.exit_code == 1
    assert empty.output.startswith("Error: there is no feedback yet")
    store = FeedbackStore(Location.below(tmp_path))
    store.write([])
    assert "no feedback yet" in CliRunner().invoke(main, ["--var", str(tmp_path)]).output
    store.write([an_event("a", user_id="u"), an_event("b", user_id="u"), an_event("c", event="purchase")])
    shown = CliRunner().invoke(main, ["--var", str(tmp_path)])
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.output.splitlines()]
    assert ["shop", "click", "2", "1"] in [line[:4] for line in lines]
    assert ["shop", "purchase", "1", "0"] in [line[:4] for line in lines]
    assert shown.output.splitlines()[-1].startswith(f"3 events in sqlite+pysqlite:///{tmp_path}/feedback/events.sqlite")
    store.close()


def test_nothing_of_an_erased_event_stays_in_the_files(location):
    store = FeedbackStore(location)
    store.write([an_event(f"{row}", user_id="anna", instruction="a secret wish " * 50) for row in range(50)])
    store.write([an_event("other", user_id="bert")])
    assert erase_people(location, ["anna"]) == 50
    assert not [path.name for path in location.folder.iterdir() if b"secret wish" in path.read_bytes()]
    assert store.write([an_event("after")]) == [True]
    store.close()


def test_a_store_that_is_busy_is_named_and_erased_later(location, monkeypatch):
    monkeypatch.setattr("feedback.store.LOCK_SECONDS", 0.1)
    FeedbackStore(location).write([an_event("a")])
    with closing(sqlite3.connect(location.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"events\.sqlite cannot be written: database is locked; erase again"):
            erase_older_than(location, 0)
    assert erase_older_than(location, 0) == 1


def test_what_a_reader_holds_in_the_log_is_said_and_erased_later(location, monkeypatch):
    monkeypatch.setattr("feedback.store.LOCK_SECONDS", 0.1)
    FeedbackStore(location).write([an_event(f"{row}", user_id="anna", instruction="a secret wish") for row in range(9)])
    with closing(sqlite3.connect(location.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM feedback_events").fetchone()
        with pytest.raises(StoreError, match=r"9 events are erased, but .* log, which somebody who reads holds"):
            erase_people(location, ["anna"])
    assert erase_people(location, ["anna"]) == 0, "none is left, but their words were"
    assert not [path.name for path in location.folder.iterdir() if b"secret wish" in path.read_bytes()]


@pytest.mark.parametrize("name", ["a%41b", "a#b", "a?b", "a b", "ä"])
def test_a_store_may_lie_anywhere(tmp_path, name):
    location = Location(tmp_path / name / "feedback", {})
    FeedbackStore(location).write([an_event("a")])
    with FeedbackReader(location) as reader:
        assert [one.event_id for one in reader.events("shop")] == ["a"]
    assert erase_older_than(location, 0) == 1


def test_another_users_store_is_named_with_its_owner(tmp_path, monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    FeedbackStore(Location.below(tmp_path)).write([an_event("a")])
    folder, owner, stat_of = tmp_path / "feedback", tmp_path.owner(), Path.stat

    def denied(path, **options):  # by mode alone nothing keeps root out
        if path.name == "url":
            raise PermissionError(13, "Permission denied", str(path))
        return stat_of(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    said = CliRunner().invoke(main, ["--var", str(tmp_path)])
    assert said.exit_code == 1
    assert said.output == (
        f"Error: {folder / 'url'} cannot be read: Permission denied; {folder} belongs to the user {owner}: "
        "run this as that user\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "events.sqlite")
    said = CliRunner().invoke(main, ["--var", str(tmp_path)])
    assert said.exit_code == 1
    assert said.output.endswith(f"events.sqlite belongs to the user {owner}: change its rights\n")


@pytest.mark.parametrize("days", ["nan", "inf", "1e12", "-1"])
def test_a_number_of_days_that_is_none_is_refused_in_one_line(tmp_path, days):
    FeedbackStore(Location.below(tmp_path)).write([an_event("a")])
    said = CliRunner().invoke(main, ["--var", str(tmp_path), "erase", "--older-than-days", days])
    assert said.exit_code == 2
    assert said.output.splitlines()[-1].startswith("Error: Invalid value for '--older-than-days': ")
    assert len(raw(Location.below(tmp_path))) == 1


def test_the_command_erases_people_whom_it_never_names(tmp_path, monkeypatch):
    for name in (URL_VARIABLE, KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, said=None):
        done = CliRunner().invoke(main, ["--var", str(tmp_path), "erase", *arguments], input=said)
        assert not any(name in done.output for name in ("anna", "bert"))
        return done.exit_code, done.output

    code, output = run("--user-ids", "-", said="anna\n")
    assert (code, "Error: " in output) == (1, True)
    assert not (tmp_path / "feedback").exists()
    store = FeedbackStore(Location.below(tmp_path))
    store.write([an_event(name, user_id=name) for name in ("anna", "bert", "carl", " dora")])
    ids = tmp_path / "ids"
    ids.write_text("bert\r\n\n dora", encoding="utf-8-sig")  # as a spreadsheet saves it
    output = run("--user-ids", "-", said="anna\nnobody\n")[1]
    assert output.startswith("1 events of 1 people erased in sqlite")
    assert "1 of 2 ids have no events here" in output
    assert run("--user-ids", str(ids))[1].startswith("2 events of 2 people erased")
    assert run("--older-than-days", "90")[1].startswith("0 events older than 90 days")
    assert [row["event_id"] for row in raw(Location.below(tmp_path))] == ["carl"]
    ids.write_bytes(b"\xff\n")
    assert run("--user-ids", str(ids))[1].startswith("Error: the ids of people are not UTF-8")
    for wrong in ((), ("--older-than-days", "1", "--user-ids", str(ids))):
        assert "give either" in run(*wrong)[1]
    store.close()
