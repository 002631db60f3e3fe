"""The writer: a batch of events becomes one transaction, durable when it returns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError

from .errors import StoreError
from .events import PROBE, Event
from .location import Location
from .masking import mask
from .people import UserHasher
from .schema import SCHEMA_VERSION, USER_KEY, events, meta, metadata

LOCK_SECONDS = 2.0
"""How long a batch waits for another writer; the senders behind it wait as long."""
CONNECT_SECONDS = 3
ADVISORY_LOCK = 0x1257_7EC0_FEED
"""One writer at a time in PostgreSQL, too: numbers of a sequence are drawn before the commit, and two writers at once
could commit 8 before 7, which a reader that has seen 8 would never go back for."""
POSTGRESQL_SETTINGS = {
    "synchronous_commit": "on",  # whatever the database's default is: acknowledged means flushed
    "lock_timeout": f"{LOCK_SECONDS:.0f}s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
}
WRITE_AHEAD_LOG_BYTES = 64 << 20
"""To which SQLite cuts its log back after a checkpoint."""
KNOWN_AT_ONCE = 500
"""Ids in one query; SQLite takes up to 999 parameters where it is old."""


class FeedbackStore:
    """Writes events to the store of a location. Opens it when it is first needed, and again after a failure.

    One thread at a time.
    """

    def __init__(self, location: Location) -> None:
        """Take the location; nothing is opened."""
        self._location = location
        self._engine: Engine | None = None
        self._hasher: UserHasher | None = None
        self._file: tuple[Path, tuple[int, int]] | None = None

    def write(self, batch: Sequence[Event]) -> list[bool]:
        """Store what is new of a batch, in one transaction, and return when it is durable.

        Text is masked and people are hashed on the way. Events of the kind `PROBE` are not stored; a batch of nothing
        else still takes the store's write lock.

        Returns:
            For each event whether it was new; False if its id is known, also from earlier in the same batch.

        Raises:
            StoreError: nothing was stored, or it is not known whether; sending the batch again is safe.
            sqlalchemy.exc.DBAPIError: the database refuses a value.
        """
        try:
            return self._write(batch, again=True)
        except (DataError, IntegrityError):
            raise
        except DBAPIError as error:
            self.close()
            raise StoreError(f"{self._named()}: {reason(error)}") from None
        except StoreError:
            self.close()
            raise

    def _write(self, batch: Sequence[Event], *, again: bool) -> list[bool]:
        try:
            engine, hasher = self._opened()
            # Before the lock: masking a long text takes time, which nobody else's feedback need wait for.
            received = int(time.time() * 1_000)
            rows = [None if one.event == PROBE else _row(one, received, hasher) for one in batch]
            with transaction(engine) as connection:
                stored = _insert_new(connection, rows)
        except DBAPIError as error:
            if not (again and error.connection_invalidated):
                raise
        else:
            if self._still_there():
                return stored
            if not again:
                raise StoreError(f"{self._named()}: the file is being replaced over and over")
        # The server of the database was restarted, or somebody moved the file away: what was committed to a file that
        # no longer has a name would be lost. Ids make the second time harmless.
        self.close()
        return self._write(batch, again=False)

    def _opened(self) -> tuple[Engine, UserHasher]:
        if self._engine is None or self._hasher is None:
            hasher, url = UserHasher(self._location.key()), self._location.url()
            is_file = url.get_backend_name() == "sqlite"
            path = Path(str(url.database)).absolute() if is_file else None
            if path is not None:
                _create_file(path)
            self._engine = make_engine(url)
            with transaction(self._engine) as connection:
                _prepare(connection, hasher)
            self._hasher = hasher
            self._file = None if path is None else (path, _identity(path))
        return self._engine, self._hasher

    def _still_there(self) -> bool:
        """Whether the file that was written to still is the one of that name."""
        if self._file is None:
            return True
        path, identity = self._file
        try:
            return _identity(path) == identity
        except OSError:
            return False

    def _named(self) -> str:
        """The store as messages call it, without a password."""
        try:
            return f"feedback store {self._location.name}"
        except StoreError:
            return "feedback store"

    def close(self) -> None:
        """Close the connection; the next batch opens another."""
        engine, self._engine, self._hasher, self._file = self._engine, None, None, None
        if engine is not None:
            engine.dispose()


def reason(error: DBAPIError) -> str:
    """What the database's driver says, in one line; never the statement's values, which are people's words."""
    first = str(error.orig).strip().splitlines()
    return f"{first[0] if first else type(error.orig).__name__}; nothing was acknowledged, send it again"


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _create_file(path: Path) -> None:
    """Let SQLite find an empty file that its owner alone can read; what it puts beside it has the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(f"feedback store {path} cannot be written: {error.strerror}") from None


def make_engine(url: URL) -> Engine:
    """An engine of one connection, set up for writing.

    Raises:
        StoreError: the URL, or what is installed, does not do.
    """
    # hide_parameters: an error must not carry people's words into a log.
    settings: dict[str, Any] = {"hide_parameters": True, "pool_size": 1, "max_overflow": 0}
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": LOCK_SECONDS}, **settings)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    options = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_SETTINGS.items())
    connecting = {"connect_timeout": CONNECT_SECONDS, "options": options, "application_name": "instructrec-feedback"}
    try:
        return create_engine(url, connect_args=connecting, isolation_level="READ COMMITTED", **settings)
    except (ModuleNotFoundError, NoSuchModuleError):
        raise StoreError("feedback store: PostgreSQL needs psycopg; run `pip install 'psycopg[binary]>=3.2'`") from None
    except ArgumentError as error:
        raise StoreError(f"feedback store: {error}") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's sqlite3 begins no transaction by itself: `_begin_immediate` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # in WAL mode: the log is flushed at every commit
    cursor.execute(f"PRAGMA journal_size_limit={WRITE_AHEAD_LOG_BYTES}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at once; a reader that becomes a writer would fail instead of waiting."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other writer's overlaps, also not another process's."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        yield connection


def _prepare(connection: Connection, hasher: UserHasher) -> None:
    """Make the tables unless they are there, and see that they are of this version and of this key."""
    metadata.create_all(connection)
    expected = {"schema_version": str(SCHEMA_VERSION), USER_KEY: hasher.fingerprint}
    found: dict[str, str] = {row.name: row.value for row in connection.execute(select(meta.c.name, meta.c.value))}
    if not found:
        connection.execute(insert(meta), [{"name": name, "value": value} for name, value in expected.items()])
        return
    if (version := found.get("schema_version")) != expected["schema_version"]:
        raise StoreError(f"the feedback store has schema version {version}, this version writes {SCHEMA_VERSION}")
    check_key(connection, hasher)


def check_key(connection: Connection, hasher: UserHasher) -> None:
    """See that the store's people were hashed with this key.

    Raises:
        StoreError: it was another.
    """
    if connection.execute(select(meta.c.value).where(meta.c.name == USER_KEY)).scalar() != hasher.fingerprint:
        raise StoreError(
            "the feedback store was begun with another key of user ids, and nobody in it would be recognised again; "
            "bring the key file back, or begin another store"
        )


def _insert_new(connection: Connection, rows: Sequence[dict[str, Any] | None]) -> list[bool]:
    """Insert the rows whose ids are not there; None stands for a probe, which is never stored."""
    ids = [row["event_id"] for row in rows if row]
    known: set[str] = set()
    for start in range(0, len(ids), KNOWN_AT_ONCE):
        some = select(events.c.event_id).where(events.c.event_id.in_(ids[start : start + KNOWN_AT_ONCE]))
        known.update(connection.execute(some).scalars())
    stored, new = [], []
    for row in rows:
        is_new = row is not None and row["event_id"] not in known
        stored.append(is_new)
        if row is not None and is_new:
            known.add(row["event_id"])
            new.append(row)
    if new:
        connection.execute(insert(events), new)
    return stored


def _row(one: Event, received: int, hasher: UserHasher) -> dict[str, Any]:
    return {
        "event_id": one.event_id,
        "received": received,
        "timestamp": one.timestamp,
        "domain": one.domain,
        "release": one.release,
        "request_id": one.request_id,
        "user_hash": hasher.hash(one.user_id),
        "instruction": mask(one.instruction),
        "item_id": one.item_id,
        "event": one.event,
        "value": one.value,
    }
