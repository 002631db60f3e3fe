"""Checks on a request that need no server. Sizes that a server may set for itself are left to it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from numbers import Integral

from ._errors import InvalidRequest

__all__ = ["check_request", "check_text"]

MAX_TOP_K = 100
"""The largest k of the contract."""
UNSEEN = frozenset({"Cc", "Cf", "Co", "Mn", "Mc", "Me", "Zs", "Zl", "Zp"})
"""Unicode's categories of what alone says nothing: control, zero-width, private characters, marks, spaces."""


def check_request(instructions: Sequence[str], histories: Sequence[Sequence[str]] | None, k: int) -> None:
    """Check what the contract says of a request's values.

    Raises:
        InvalidRequest: A value breaks the contract; the message names it and its row, never the text itself.
    """
    _check_k(k)
    if isinstance(instructions, (str, bytes)) or not isinstance(instructions, Sequence):
        raise InvalidRequest(f"instructions must be a sequence of str, got {type(instructions).__name__}: pass a list")
    for row, instruction in enumerate(instructions):
        check_text(instruction, f"the instruction{_where(row, len(instructions))}")
        if _is_blank(instruction):
            raise InvalidRequest(f"the instruction{_where(row, len(instructions))} is empty: say what is wanted")
    if histories is None:
        return
    if isinstance(histories, (str, bytes)) or not isinstance(histories, Sequence):
        raise InvalidRequest(f"histories must be a sequence of histories, got {type(histories).__name__}: pass a list")
    if len(histories) != len(instructions):
        raise InvalidRequest(
            f"{len(histories)} histories for {len(instructions)} instructions: "
            "pass one for each, an empty one where there is none"
        )
    for row, history in enumerate(histories):
        _check_history(history, f"the history{_where(row, len(histories))}")


def _is_blank(text: str) -> bool:
    # The server's rule. U+FFFD stands for bytes that somebody could not decode.
    return all(character == "\ufffd" or unicodedata.category(character) in UNSEEN for character in text)


def _where(row: int, rows: int) -> str:
    return f" of row {row}" if rows > 1 else ""


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise InvalidRequest(f"k must be an int from 1 to {MAX_TOP_K}, got {type(k).__name__}")
    if not 1 <= k <= MAX_TOP_K:
        raise InvalidRequest(f"k must be from 1 to {MAX_TOP_K}, got {k}")


def _check_history(history: Sequence[str], name: str) -> None:
    if isinstance(history, (str, bytes)) or not isinstance(history, Sequence):
        raise InvalidRequest(
            f"{name} must be a sequence of item ids, got {type(history).__name__}: pass a list, newest first"
        )
    for position, item_id in enumerate(history):
        check_text(item_id, f"{name}, entry {position},")


def check_text(text: str, name: str) -> None:
    """Check that a value is text that can be sent.

    Raises:
        InvalidRequest: It is not; the message calls it by `name`.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} cannot be written as UTF-8 (character {error.start} is half of a surrogate pair): repair the text"
        ) from None
