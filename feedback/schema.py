"""The tables, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Identity, Index, Integer, MetaData, Table, Text

SCHEMA_VERSION = 1
"""Of the tables below. A store of another version is refused, never guessed at."""

USER_KEY = "user_key"
"""In `meta`: the fingerprint of the key of user ids."""
ERASED = "erased_until"
"""In `meta`, once something was erased: the newest sequence number that there was by then."""

metadata = MetaData()

meta = Table(
    "feedback_meta",
    metadata,
    Column("name", Text, primary_key=True),  # schema_version and those above
    Column("value", Text, nullable=False),
)

events = Table(
    "feedback_events",
    metadata,
    # In the order of commits, never used twice: a reader that has seen n has seen all there will ever be up to n.
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), Identity(always=True), primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("received", BigInteger, nullable=False),  # milliseconds since 1970-01-01 UTC, by the server's clock
    Column("timestamp", BigInteger, nullable=False),  # likewise, as the sender says it
    Column("domain", Text, nullable=False),
    Column("release", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("user_hash", Text),  # null: nobody in particular
    Column("instruction", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("value", Float(53), nullable=False),
    Index("feedback_events_of_domain", "domain", "sequence"),
    sqlite_autoincrement=True,
)
