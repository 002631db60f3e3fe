"""The reader: events since a watermark, and what there is in all. Never writes, and holds no writer up."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from .access import is_there, why
from .errors import StoreError
from .location import Location
from .schema import ERASED, SCHEMA_VERSION, events, meta

PAGE = 1_000
"""Events a transaction: a long one would keep SQLite from cutting its log back."""


@dataclass(frozen=True)
class StoredEvent:
    """An event as it was stored.

    Attributes:
        sequence: its number in the order of commits, from 1, with gaps: the watermark of whoever has read it.
        event_id, domain, event, item_id, value, request_id, release: as sent.
        timestamp: when it happened, in seconds since 1970-01-01 UTC.
        received: when it was stored, likewise.
        user_hash: the same for the same person; None for nobody in particular.
        instruction: what they had asked for, masked; "" if nothing.
    """

    sequence: int
    event_id: str
    domain: str
    event: str
    item_id: str
    value: float
    timestamp: float
    received: float
    user_hash: str | None
    instruction: str
    request_id: str
    release: str


@dataclass(frozen=True)
class Count:
    """How much there is of one kind of event in one domain."""

    domain: str
    event: str
    events: int
    people: int
    first: datetime
    last: datetime


class FeedbackReader:
    """Reads the store of a location.

    Example:
        with FeedbackReader(Location.below(Path("var"))) as reader:
            until = reader.watermark()
            for event in reader.events("ecommerce", after=seen, until=until):
                ...
            seen = until
    """

    def __init__(self, location: Location) -> None:
        """Open the store.

        Raises:
            StoreError: there is none yet, or it cannot be read, or not by this version.
        """
        url = location.url()
        self._name = location.name
        is_file = url.get_backend_name() == "sqlite"
        if is_file:
            path = Path(str(url.database)).absolute()
            if not is_there(path):
                raise StoreError(f"there is no feedback yet in {path}; `client.feedback(…)` sends it to a server")
            if not os.access(path, os.R_OK):
                denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                raise StoreError(f"feedback store {path} cannot be read: {why(denied, path)}")
            url = url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        try:
            options: dict[str, Any] = {} if is_file else {"execution_options": {"postgresql_readonly": True}}
            self._engine: Engine = create_engine(url, hide_parameters=True, **options)
        except (ModuleNotFoundError, NoSuchModuleError):
            raise StoreError("PostgreSQL needs psycopg; run `pip install 'psycopg[binary]>=3.2'`") from None
        if is_file:
            event.listen(self._engine, "connect", _no_transactions)
        self._check_version()

    def watermark(self) -> int:
        """The newest event's sequence number, also if it was erased since; 0 before the first."""
        with self._connection() as connection:
            erased = connection.execute(select(meta.c.value).where(meta.c.name == ERASED)).scalar()
            return max(connection.execute(select(func.max(events.c.sequence))).scalar() or 0, int(erased or 0))

    def events(self, domain: str, *, after: int = 0, until: int | None = None) -> Iterator[StoredEvent]:
        """A domain's events in the order in which they were stored.

        Args:
            domain: whose.
            after: the watermark: the sequence number up to which everything is known.
            until: the sequence number to end with, a `watermark()` say; the newest if None.

        Raises:
            StoreError: the store cannot be read.
        """
        while True:
            page = select(events).where(events.c.domain == domain, events.c.sequence > after)
            if until is not None:
                page = page.where(events.c.sequence <= until)
            with self._connection() as connection:
                rows = connection.execute(page.order_by(events.c.sequence).limit(PAGE)).mappings().all()
            for row in rows:
                yield _stored(row)
            if len(rows) < PAGE:
                return
            after = rows[-1]["sequence"]

    def counts(self) -> list[Count]:
        """How much there is, by domain and kind of event."""
        columns = events.c
        query = (
            select(
                columns.domain,
                columns.event,
                func.count(),
                func.count(columns.user_hash.distinct()),
                func.min(columns.timestamp),
                func.max(columns.timestamp),
            )
            .group_by(columns.domain, columns.event)
            .order_by(columns.domain, columns.event)
        )
        with self._connection() as connection:
            return [
                Count(domain, kind, number, people, _moment(first), _moment(last))
                for domain, kind, number, people, first, last in connection.execute(query)
            ]

    def check(self) -> None:
        """Look through a SQLite file for damage; PostgreSQL sees to that itself.

        Raises:
            StoreError: it is damaged.
        """
        with self._connection() as connection:
            if connection.dialect.name == "sqlite":
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
                if found != "ok":
                    raise StoreError(f"feedback store {self._name} is damaged: {str(found).splitlines()[0]}")

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def __enter__(self) -> FeedbackReader:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    def _check_version(self) -> None:
        with self._connection() as connection:
            found = connection.execute(select(meta.c.value).where(meta.c.name == "schema_version")).scalar()
        if found != str(SCHEMA_VERSION):
            raise StoreError(
                f"feedback store {self._name} has schema version {found}, this version reads {SCHEMA_VERSION}"
            )

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            first = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
            raise StoreError(f"feedback store {self._name} cannot be read: {first}") from None


def _no_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1_000, tz=timezone.utc)


def _stored(row: Any) -> StoredEvent:
    return StoredEvent(**{**row, "timestamp": row["timestamp"] / 1_000, "received": row["received"] / 1_000})
