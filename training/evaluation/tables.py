"""Markdown tables, and any nested numbers as such."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Sequence[object]
ESCAPED = {
    "\\": "\\\\",
    "|": "\\|",
    "<": "&lt;",
    ">": "&gt;",
    "`": "\\`",
    "*": "\\*",
    "_": "\\_",
    "[": "\\[",
    "$": "\\$",
}


def plain_text(text: str) -> str:
    """People's text or a label as it stands in Markdown: one line, without any meaning to it."""
    return "".join(ESCAPED.get(character, character) for character in " ".join(text.split()))


def table(header: Row, rows: Iterable[Row], text_columns: int = 1) -> str:
    """A table whose first `text_columns` columns are text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in (header, rule, *rows)) + "\n"


def is_estimate(value: object) -> bool:
    """Whether a value of the tree is a number with its interval."""
    return isinstance(value, Mapping) and set(value) == {"value", "low", "high"}


def number(value: Any, digits: int = 3) -> str:
    """A number, or one with its interval, for reading; a dash for none."""
    if value is None:
        return "–"
    if is_estimate(value):
        return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, float) else plain_text(str(value))


def nested(tree: Mapping[str, Any], title: str = "") -> str:
    """Any nested numbers as tables: the plain values of a level in one, entries with like keys in another."""
    leaves = {key: value for key, value in tree.items() if not isinstance(value, Mapping) or is_estimate(value)}
    branches = {key: value for key, value in tree.items() if key not in leaves}
    parts = [table(("", "value"), [(_words(key), _cell(value)) for key, value in leaves.items()])] if leaves else []
    flat = {key: value for key, value in branches.items() if value and all(_is_cell(entry) for entry in value.values())}
    if flat:
        columns = list(dict.fromkeys(column for value in flat.values() for column in value))
        rows = [(_words(key), *(_cell(value.get(column)) for column in columns)) for key, value in flat.items()]
        parts.append(table((_words(title), *map(_words, columns)), rows))
    parts += [
        f"**{_words(key)}**\n\n{nested(value, key)}" for key, value in branches.items() if key not in flat and value
    ]
    return "\n".join(parts)


def _is_cell(value: object) -> bool:
    return not isinstance(value, Mapping) or is_estimate(value)


def _cell(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_cell(entry) for entry in value)
    return plain_text(str(dict(value))) if isinstance(value, Mapping) and not is_estimate(value) else number(value)


def _words(key: str) -> str:
    return plain_text(key.replace("_", " "))
