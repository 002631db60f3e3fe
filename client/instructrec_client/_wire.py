"""The wire contract: a request to tensors, tensors to recommendations. Shared by both clients."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult

from ._errors import ProtocolError
from ._models import Item, Reason, Recommendations

__all__ = ["INPUTS", "MAX_BATCH_SIZE", "OUTPUTS", "WireRequest", "decode", "encode", "tensor_of"]

MAX_BATCH_SIZE = 32
"""Rows that every server accepts in one request."""

INPUTS = {"instruction": ("BYTES", (1,)), "history": ("BYTES", (-1,)), "top_k": ("INT32", (1,))}
"""Type and dims of each input, the batch dimension left out."""

OUTPUTS = {
    "item_id": ("BYTES", (-1,)),
    "title": ("BYTES", (-1,)),
    "label": ("BYTES", (-1,)),
    "score": ("FP32", (-1,)),
    "reason": ("FP32", (-1, 4)),
    "release": ("BYTES", (1,)),
}
"""Type and dims of each output, the batch dimension left out; -1 is the number of items."""


@dataclass(frozen=True)
class WireRequest:
    """One request as it is sent: its input tensors, and what the answer is checked against."""

    inputs: list[InferInput]
    rows: int
    top_k: int


def encode(instructions: Sequence[str], histories: Sequence[Sequence[str]] | None, top_k: int) -> Iterator[WireRequest]:
    """Yield the requests for instructions that were checked, at most `MAX_BATCH_SIZE` rows each.

    Shorter histories of a request are padded with `""`, which the contract ignores.
    """
    instructions = tuple(instructions)  # a deque, say, has no slices
    histories = None if histories is None else tuple(histories)
    for start in range(0, len(instructions), MAX_BATCH_SIZE):
        texts = instructions[start : start + MAX_BATCH_SIZE]
        chosen: Sequence[Sequence[str]] = (
            [()] * len(texts) if histories is None else histories[start : start + len(texts)]
        )
        longest = max(map(len, chosen))
        padded = [[*history, *[""] * (longest - len(history))] for history in chosen]
        inputs = [
            _bytes_input("instruction", [[text] for text in texts], (len(texts), 1)),
            _bytes_input("history", padded, (len(texts), longest)),
            _input("top_k", np.full((len(texts), 1), top_k, dtype=np.int32)),
        ]
        yield WireRequest(inputs, rows=len(texts), top_k=top_k)


def decode(result: InferResult, request: WireRequest) -> list[Recommendations]:
    """Return one answer for each row of the request.

    Raises:
        ProtocolError: An output is missing, or has the wrong type, shape or bytes.
    """
    tensors = {name: tensor_of(result, name, described, request.rows) for name, described in OUTPUTS.items()}
    found = tensors["score"].shape[1]
    if found > request.top_k:
        raise ProtocolError(f"the server returned {found} items where {request.top_k} were asked for")
    for name, (_, dims) in OUTPUTS.items():
        if dims[0] == -1 and tensors[name].shape[1] != found:
            raise ProtocolError(f"output {name!r} holds {tensors[name].shape[1]} items, 'score' holds {found}")
    version = str(result.get_response().model_version)
    return [_recommendations(tensors, row, version) for row in range(request.rows)]


def _input(name: str, values: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, list(values.shape), INPUTS[name][0])
    tensor.set_data_from_numpy(values)
    return tensor


def _bytes_input(name: str, rows: Sequence[Sequence[str]], shape: tuple[int, int]) -> InferInput:
    values = np.empty(shape, dtype=np.object_)
    for row, texts in enumerate(rows):
        values[row, :] = [text.encode() for text in texts]
    return _input(name, values)


def tensor_of(result: InferResult, name: str, expected_type: tuple[str, tuple[int, ...]], rows: int) -> NDArray[Any]:
    """Return an output that has the type and dims that the contract says.

    Raises:
        ProtocolError: It is missing, or has not.
    """
    described = result.get_output(name)
    if described is None:
        raise ProtocolError(f"the answer lacks output {name!r}: check that this server serves the contract")
    datatype, dims = expected_type
    if described.datatype != datatype:
        raise ProtocolError(f"output {name!r} is {described.datatype}, the contract says {datatype}")
    shape, expected = list(described.shape), [rows, *dims]
    if len(shape) != len(expected) or any(want not in (-1, size) for size, want in zip(shape, expected, strict=True)):
        raise ProtocolError(f"output {name!r} has shape {shape}, the contract says {expected}")
    try:
        values: NDArray[Any] = result.as_numpy(name)
    except (ValueError, struct.error) as error:
        raise ProtocolError(f"output {name!r} does not hold what its shape {shape} says: {error}") from error
    return values


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"output {name!r} is not UTF-8: {error.reason} at byte {error.start}") from None


def _recommendations(tensors: dict[str, NDArray[Any]], row: int, version: str) -> Recommendations:
    columns = [[_text(value, name) for value in tensors[name][row]] for name in ("item_id", "title", "label")]
    items = tuple(
        Item(item_id, title, label, score, Reason(*reason))
        for item_id, title, label, score, reason in zip(
            *columns, tensors["score"][row].tolist(), tensors["reason"][row].tolist(), strict=True
        )
    )
    return Recommendations(items, release=_text(tensors["release"][row, 0], "release"), model_version=version)
