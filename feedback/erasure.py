"""Takes events out again: a person's, because they ask for it, or those that are too old to be kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, event, func, insert, select
from sqlalchemy.exc import DBAPIError

from .errors import StoreError
from .location import Location
from .people import UserHasher, read_key
from .reader import FeedbackReader
from .schema import ERASED, events, meta
from .store import check_key, make_engine, transaction

SEQUENCES_AT_ONCE = 10_000
"""Looked through in one transaction: the server's writer waits for each, and for none longer than a moment."""
PEOPLE_AT_ONCE = 500
"""Hashes in one statement; SQLite takes up to 999 parameters where it is old."""
DAY_MILLISECONDS = 86_400_000


def erase_people(location: Location, user_ids: Iterable[str]) -> int:
    """Erase all events of people, in all domains.

    Args:
        location: of the store.
        user_ids: the people, as the senders of the events call them. They are hashed as the writer does.

    Returns:
        How many events there were.

    Raises:
        StoreError: there is no store, its key is not there or another one, it cannot be written, or a reader keeps what
            was erased in SQLite's log. What was erased by then stays erased; erasing again takes the rest.
    """
    hasher = UserHasher(read_key(location.key_file))
    return _erase(location, _of_people(hasher, user_ids), hasher)


def people_with_events(location: Location, user_ids: Iterable[str]) -> int:
    """How many of some people have events, so that an id that nobody has is not taken for one that was erased.

    Raises:
        StoreError: as for `erase_people`.
    """
    hasher = UserHasher(read_key(location.key_file))
    with FeedbackReader(location):
        pass
    engine = make_engine(location.url())
    try:
        with transaction(engine) as connection:
            return sum(
                connection.execute(select(func.count(events.c.user_hash.distinct())).where(group)).scalar_one()
                for group in _of_people(hasher, user_ids)
            )
    except DBAPIError as error:
        said = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
        raise StoreError(f"feedback store {location.name} cannot be read: {said}") from None
    finally:
        engine.dispose()


def _of_people(hasher: UserHasher, user_ids: Iterable[str]) -> list[ColumnElement[bool]]:
    hashes = sorted({found for one in user_ids if (found := hasher.hash(one))})
    groups = [hashes[start : start + PEOPLE_AT_ONCE] for start in range(0, len(hashes), PEOPLE_AT_ONCE)]
    return [events.c.user_hash.in_(group) for group in groups]


def erase_older_than(location: Location, days: float) -> int:
    """Erase all events that the server took more than so many days ago, whatever time the sender gave them.

    Returns:
        How many there were.

    Raises:
        StoreError: as for `erase_people`; no key is needed.
    """
    return _erase(location, [events.c.received < int(time.time() * 1_000 - days * DAY_MILLISECONDS)])


def _erase(location: Location, conditions: Sequence[ColumnElement[bool]], hasher: UserHasher | None = None) -> int:
    with FeedbackReader(location):  # is there, and of this version
        pass
    engine = make_engine(location.url())
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _overwrite_what_is_erased)
    try:
        with transaction(engine) as connection:
            if hasher is not None:
                check_key(connection, hasher)
            lowest = connection.execute(select(func.min(events.c.sequence))).scalar() or 0
            highest = connection.execute(select(func.max(events.c.sequence))).scalar() or 0
            # Before anything is gone: readers go on from the newest number that ever was (`FeedbackReader.watermark`).
            _remember(connection, highest)
        erased = sum(
            _erase_between(engine, first, first + SEQUENCES_AT_ONCE - 1, conditions)
            for first in range(lowest, highest + 1, SEQUENCES_AT_ONCE)
        )
        if not _leave_no_trace(engine):
            raise StoreError(
                f"feedback store {location.name}: {erased} events are erased, but what they held still stands in its "
                "log, which somebody who reads holds (a backup, say); erase again once they are done"
            )
        return erased
    except DBAPIError as error:
        said = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
        raise StoreError(f"feedback store {location.name} cannot be written: {said}; erase again") from None
    finally:
        engine.dispose()


def _remember(connection: Connection, highest: int) -> None:
    known = connection.execute(select(meta.c.value).where(meta.c.name == ERASED)).scalar()
    connection.execute(delete(meta).where(meta.c.name == ERASED))
    connection.execute(insert(meta).values(name=ERASED, value=str(max(highest, int(known or 0)))))


def _erase_between(engine: Engine, first: int, last: int, conditions: Sequence[ColumnElement[bool]]) -> int:
    with transaction(engine) as connection:
        return sum(
            connection.execute(delete(events).where(events.c.sequence.between(first, last), condition)).rowcount
            for condition in conditions
        )


def _overwrite_what_is_erased(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA secure_delete=ON")


def _leave_no_trace(engine: Engine) -> bool:
    """Bring what was overwritten from SQLite's log into its file, and empty the log; PostgreSQL has its vacuum.

    Returns:
        False if somebody else's transaction holds the log.
    """
    if engine.dialect.name != "sqlite":
        return True
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(busy, *_)] = cursor.fetchall()
        return not busy
