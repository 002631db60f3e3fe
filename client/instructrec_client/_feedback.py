"""Feedback: the value that a caller gives, its checks, and its tensors. Shared by both clients."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferResult

from ._errors import InvalidRequest, ProtocolError
from ._validation import check_text
from ._wire import tensor_of

__all__ = [
    "FEEDBACK_EVENTS",
    "FEEDBACK_INPUTS",
    "FEEDBACK_MODEL",
    "FEEDBACK_OUTPUTS",
    "MAX_FEEDBACK_ROWS",
    "Feedback",
    "FeedbackRequest",
    "check_feedback",
    "decode_feedback",
    "encode_feedback",
]

FEEDBACK_MODEL = "feedback"
"""The model that takes feedback for every domain of a server."""
FEEDBACK_EVENTS = ("impression", "click", "add", "purchase", "rating")
"""What a person may have done."""
MAX_FEEDBACK_ROWS = 256
"""Events that every server accepts in one request."""

FEEDBACK_INPUTS = {
    "event_id": ("BYTES", (1,)),
    "domain": ("BYTES", (1,)),
    "event": ("BYTES", (1,)),
    "item_id": ("BYTES", (1,)),
    "request_id": ("BYTES", (1,)),
    "user_id": ("BYTES", (1,)),
    "instruction": ("BYTES", (1,)),
    "value": ("FP32", (1,)),
    "timestamp": ("INT64", (1,)),
    "release": ("BYTES", (1,)),
}
"""Type and dims of each input, the batch dimension left out."""
FEEDBACK_OUTPUTS = {"stored": ("INT32", (1,))}
"""Likewise of the output."""
TEXTS = ("event_id", "event", "item_id", "request_id", "user_id", "instruction", "release")
OPTIONAL_TEXTS = ("request_id", "user_id", "instruction", "release")


@dataclass(frozen=True)
class Feedback:
    """One thing that a person did with an item.

    Attributes:
        event: `impression`, `click`, `add`, `purchase` or `rating`.
        item_id: The item.
        value: A rating, which needs one, or an amount; 1 where left out.
        user_id: The person. The server keeps a keyed hash of it, never the id.
        instruction: What they had asked for. The server masks e-mail addresses, card and telephone numbers.
        request_id: Your name for the recommendation that led to it.
        release: The release that had answered, `Recommendations.release`.
        timestamp: When, in seconds since 1970-01-01 UTC as `time.time()` gives them; now where left out.
        event_id: The event's own id. What is sent twice under one id is stored once; drawn at random where left out.
    """

    event: str
    item_id: str
    value: float | None = None
    user_id: str = field(default="", repr=False)
    instruction: str = field(default="", repr=False)
    request_id: str = ""
    release: str = ""
    timestamp: float = field(default_factory=time.time)
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class FeedbackRequest:
    """One request as it is sent."""

    inputs: list[InferInput]
    rows: int


def check_feedback(events: Sequence[Feedback]) -> None:
    """Check what the contract says of events' values.

    Raises:
        InvalidRequest: A value breaks the contract; the message names it and its row, never a person's words or id.
    """
    if isinstance(events, (str, bytes)) or not isinstance(events, Sequence):
        raise InvalidRequest(f"events must be a sequence of Feedback, got {type(events).__name__}: pass a list")
    for row, one in enumerate(events):
        where = f" of row {row}" if len(events) > 1 else ""
        if not isinstance(one, Feedback):
            raise InvalidRequest(f"event{where} must be a Feedback, got {type(one).__name__}")
        for name in TEXTS:
            check_text(getattr(one, name), f"the {name}{where}")
        if one.event not in FEEDBACK_EVENTS:
            raise InvalidRequest(f"the event{where} must be one of {', '.join(FEEDBACK_EVENTS)}")
        for name in ("event_id", "item_id"):
            if not getattr(one, name).strip():
                raise InvalidRequest(f"the {name}{where} is empty")
        if one.value is None and one.event == "rating":
            raise InvalidRequest(f"the value{where} is missing, and a rating needs one")
        _check_number(1.0 if one.value is None else one.value, f"the value{where}")
        _check_number(one.timestamp, f"the timestamp{where}")
        if not 0 <= one.timestamp < 1e11:
            raise InvalidRequest(f"the timestamp{where} must be seconds since 1970 UTC, as time.time() gives them")


def _check_number(value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRequest(f"{name} must be a number, got {type(value).__name__}")
    # In this order: isfinite() fails on an int that no float can hold.
    if abs(value) > float(np.finfo(np.float32).max) or not math.isfinite(value):
        raise InvalidRequest(f"{name} must be a finite number")


def encode_feedback(domain: str, events: Sequence[Feedback]) -> Iterator[FeedbackRequest]:
    """Yield the requests for events that were checked, at most `MAX_FEEDBACK_ROWS` each.

    What is optional and in no event of a request is left out of it: every tensor costs the server and this client some
    20 microseconds.
    """
    events = tuple(events)  # a deque, say, has no slices
    for start in range(0, len(events), MAX_FEEDBACK_ROWS):
        rows = events[start : start + MAX_FEEDBACK_ROWS]
        cells: dict[str, list[Any]] = {name: [getattr(one, name).encode() for one in rows] for name in TEXTS}
        cells["domain"] = [domain.encode()] * len(rows)
        cells["value"] = [1.0 if one.value is None else one.value for one in rows]
        cells["timestamp"] = [round(one.timestamp * 1_000) for one in rows]
        empty = {name for name in OPTIONAL_TEXTS if not any(cells[name])}
        if all(one.value is None for one in rows):
            empty.add("value")
        given = [name for name in FEEDBACK_INPUTS if name not in empty]
        yield FeedbackRequest([_column(name, cells[name]) for name in given], len(rows))


def _column(name: str, cells: list[Any]) -> InferInput:
    datatype = FEEDBACK_INPUTS[name][0]
    tensor = InferInput(name, [len(cells), 1], datatype)
    dtype = {"BYTES": np.object_, "FP32": np.float32, "INT64": np.int64}[datatype]
    tensor.set_data_from_numpy(np.array(cells, dtype=dtype).reshape(-1, 1))
    return tensor


def decode_feedback(result: InferResult, request: FeedbackRequest) -> list[bool]:
    """Return for each row of the request whether its event was new.

    Raises:
        ProtocolError: The output is missing, or has the wrong type, shape or values.
    """
    stored = tensor_of(result, "stored", FEEDBACK_OUTPUTS["stored"], request.rows).reshape(-1)
    if not np.isin(stored, (0, 1)).all():
        raise ProtocolError("output 'stored' holds other numbers than 0 and 1")
    return [bool(one) for one in stored]
