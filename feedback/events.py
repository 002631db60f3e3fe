"""One event, and the checks that stand between the wire and the store."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidEventError

KINDS = ("impression", "click", "add", "purchase", "rating")
"""What a person may have done with an item; a rating is the only one that needs a value."""
PROBE = "probe"
"""An event of this kind asks whether the store can be written. It is never stored."""
REQUIRED = ("event_id", "domain", "event", "item_id")
OPTIONAL = ("request_id", "user_id", "instruction", "value", "timestamp", "release")

MAX_INSTRUCTION_BYTES = 16_384
MAX_ID_BYTES = 256
EARLIEST = 946_684_800_000
"""2000-01-01 in milliseconds: what lies before is a unit mistaken for another."""
CLOCKS_DIFFER = 3_600_000
"""Milliseconds that a caller's clock may be ahead of the server's."""

_TOKEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Event:
    """One thing that one person did.

    Attributes:
        event_id: chosen by the sender; an event sent twice is stored once.
        domain: the domain that recommended.
        event: one of `KINDS`, or `PROBE`.
        item_id: the item it was done with.
        value: a rating, an amount or a weight; 1 unless given.
        timestamp: when, in milliseconds since 1970-01-01 UTC.
        request_id: the recommendation that led to it; "" if unknown.
        user_id: the person, as the sender calls them; the store keeps a keyed hash only. "" if unknown.
        instruction: what they had asked for; masked before it is stored. "" if nothing.
        release: the release that had answered; "" if unknown.
    """

    event_id: str
    domain: str
    event: str
    item_id: str = field(repr=False)
    value: float
    timestamp: int
    request_id: str = ""
    user_id: str = field(default="", repr=False)
    instruction: str = field(default="", repr=False)
    release: str = ""


def read_events(column: Callable[[str], Any], *, now: Callable[[], float] = time.time) -> list[Event]:
    """Check the tensors of one request and make its rows into events.

    Args:
        column: gives an input's array [rows, 1] by its name, or None where the request leaves an optional one out.
        now: seconds since 1970-01-01 UTC.

    Raises:
        InvalidEventError: a row breaks the contract; the message names row (from 0) and field.
    """
    clock = int(now() * 1_000)
    columns: dict[str, list[Any] | None] = {}
    for name in (*REQUIRED, *OPTIONAL):
        values = column(name)
        columns[name] = None if values is None else values.reshape(-1).tolist()
    rows = len(columns["event_id"] or ())
    for name in REQUIRED:
        if columns[name] is None:
            raise InvalidEventError(f"input {name} is missing")
    given = {name: values for name, values in columns.items() if values is not None}
    return [_event(row, {name: values[row] for name, values in given.items()}, clock) for row in range(rows)]


def _event(row: int, cells: dict[str, Any], clock: int) -> Event:
    kind = _text(row, "event", cells["event"], MAX_ID_BYTES)
    if kind not in KINDS and kind != PROBE:
        raise _invalid(row, "event", f"is none of {', '.join(KINDS)}")
    return Event(
        event_id=_token(row, "event_id", cells["event_id"]),
        domain=_token(row, "domain", cells["domain"]),
        event=kind,
        item_id=_item(row, cells["item_id"]),
        value=_value(row, kind, cells.get("value")),
        timestamp=_timestamp(row, cells.get("timestamp"), clock),
        request_id=_token(row, "request_id", cells.get("request_id", b""), optional=True),
        user_id=_text(row, "user_id", cells.get("user_id", b""), MAX_ID_BYTES),
        instruction=_text(row, "instruction", cells.get("instruction", b""), MAX_INSTRUCTION_BYTES),
        release=_token(row, "release", cells.get("release", b""), optional=True),
    )


def _invalid(row: int, name: str, what: str) -> InvalidEventError:
    return InvalidEventError(f"row {row}, {name}: {what}")


def _text(row: int, name: str, raw: bytes, limit: int) -> str:
    if len(raw) > limit:
        raise _invalid(row, name, f"has {len(raw):,} bytes, at most {limit:,} are taken")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(row, name, f"is not UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise _invalid(row, name, "holds a NUL character")
    return text


def _token(row: int, name: str, raw: bytes, *, optional: bool = False) -> str:
    text = _text(row, name, raw, MAX_ID_BYTES)
    if optional and not text:
        return text
    if not _TOKEN.fullmatch(text):
        raise _invalid(row, name, "is not 1 to 128 characters of A-Z a-z 0-9 . _ : / + = -")
    return text


def _item(row: int, raw: bytes) -> str:
    text = _text(row, "item_id", raw, MAX_ID_BYTES)
    if not text.strip() or _CONTROL.search(text):
        raise _invalid(row, "item_id", "is empty, or holds a control character")
    return text


def _value(row: int, kind: str, value: float | None) -> float:
    if value is None:
        if kind == "rating":
            raise _invalid(row, "value", "is missing, and a rating needs one")
        return 1.0
    if not math.isfinite(value):
        raise _invalid(row, "value", "is not a finite number")
    return float(value)


def _timestamp(row: int, timestamp: int | None, clock: int) -> int:
    if timestamp is None:
        return clock
    if timestamp < EARLIEST:
        raise _invalid(row, "timestamp", "lies before the year 2000; it counts milliseconds since 1970-01-01 UTC")
    if timestamp > clock + CLOCKS_DIFFER:
        raise _invalid(row, "timestamp", "lies in the future; it counts milliseconds since 1970-01-01 UTC")
    return int(timestamp)
