"""Checks of a recommendation's `history` and `top_k` tensors, as the wire contract has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .invalid_request import InvalidRequestError
from .ranking import MAX_HISTORY, MAX_TOP_K


@dataclass(frozen=True)
class Wish:
    """What one request wants beside its instruction, checked.

    Attributes:
        history: the catalogue rows of each row's history, newest first, without padding and unknown ids.
        unknown: how many ids of the histories the catalogue does not hold.
        k: how many items every row wants.
    """

    history: list[list[int]]
    unknown: int
    k: int


def read_top_k(top_k: npt.NDArray[np.int32]) -> int:
    """The one k of a request's rows.

    Args:
        top_k: INT32 [rows, 1].

    Raises:
        InvalidRequestError: a value outside 1 … 100, or rows that differ.
    """
    values: set[int] = set(top_k.reshape(-1).tolist())
    outside = sorted(value for value in values if not 1 <= value <= MAX_TOP_K)
    if outside:
        raise InvalidRequestError(f"top_k is {outside[0]}; it must be from 1 to {MAX_TOP_K}")
    if len(values) != 1:
        raise InvalidRequestError(
            f"top_k differs between the rows of one request ({sorted(values)[:5]}); send one value"
        )
    return values.pop()


def read_history(history: npt.NDArray[Any], rows: int) -> list[list[bytes]]:
    """The item ids of each row, newest first; padding stays in.

    Args:
        history: BYTES [rows, length]; length may be 0.
        rows: how many rows the request has.

    Raises:
        InvalidRequestError: more entries than a row may have.
    """
    length = history.shape[-1]
    if length > MAX_HISTORY:
        raise InvalidRequestError(
            f"history has {length:,} entries a row; at most {MAX_HISTORY:,} are accepted: send the newest"
        )
    ids: list[list[bytes]] = history.reshape(rows, length).tolist()
    return ids
