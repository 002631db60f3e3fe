"""Recommendations as text for a terminal."""

from __future__ import annotations

import unicodedata

from ._models import Recommendations

__all__ = ["table"]

WIDEST_TEXT = 48
"""Columns that a title or label may take."""

HEADINGS = ("rank", "title", "label", "item id", "score", "instruction", "label term", "history", "prior")
TEXT_COLUMNS = (1, 2, 3)


def table(answer: Recommendations) -> str:
    """Return the items as an aligned table, one line each below the headings."""
    rows = [
        (
            str(rank),
            _clipped(item.title),
            _clipped(item.label),
            _clipped(item.item_id),
            f"{item.score:.4f}",
            *(
                f"{term:+.4f}"
                for term in (item.reason.instruction, item.reason.label, item.reason.history, item.reason.prior)
            ),
        )
        for rank, item in enumerate(answer, start=1)
    ]
    widths = [max(map(_width, column)) for column in zip(HEADINGS, *rows, strict=True)]
    return "\n".join(_line(cells, widths) for cells in (HEADINGS, *rows))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = []
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        blank = " " * (width - _width(cell))
        padded.append(cell + blank if column in TEXT_COLUMNS else blank + cell)
    return "  ".join(padded).rstrip()


def _clipped(text: str) -> str:
    """Return the text on one line of limited width, without what a terminal would obey."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    if _width(shown) <= WIDEST_TEXT:
        return shown
    while _width(shown) >= WIDEST_TEXT:
        shown = shown[:-1]
    return f"{shown}…"


def _width(text: str) -> int:
    """Return the terminal columns of a text: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
