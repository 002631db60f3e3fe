"""Writes settings into the `serving:` section of a domain's YAML, and leaves every comment and all else as it is."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serving.files import write_atomically
from sweep.errors import SweepError
from training.config_loading import read_yaml

__all__ = ["fragment", "write_settings"]

SECTION = "serving"
DEFAULT_INDENT = "  "


def fragment(settings: Mapping[str, Any]) -> str:
    """The settings as a `serving:` section."""
    return "\n".join([f"{SECTION}:", *(f"{DEFAULT_INDENT}{key}: {_value(value)}" for key, value in settings.items())])


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Change these keys of the section; the file has its old content, or all of the new one, and the mode that it had.

    A link to a file stays one.

    Raises:
        SweepError: the file cannot be read or written, or is laid out so that no line can be changed safely (a value
            over several lines, a section in braces); it is left alone, and the message has what to write by hand.
    """
    path = path.resolve()
    by_hand = f"put this into it:\n{fragment(settings)}"
    try:
        text = path.read_bytes().decode("utf-8")  # line ends as they are
        before = read_yaml(text)
        edited = _edited(text.removesuffix("\n").split("\n"), settings)
        if edited.count(f"\n{SECTION}:") + edited.startswith(f"{SECTION}:") != 1:
            raise TypeError(f"`{SECTION}:` is not on a line of its own")
        expected = before | {SECTION: (before.get(SECTION) or {}) | dict(settings)}
        after = read_yaml(edited)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise SweepError(f"{path} cannot be changed ({str(error).splitlines()[0]}); {by_hand}") from None
    if after != _plain(expected):
        raise SweepError(f"{path}: its `{SECTION}:` section cannot be changed line by line; {by_hand}")
    try:
        mode = path.stat().st_mode
        write_atomically(path, edited.encode("utf-8"))
        path.chmod(stat.S_IMODE(mode))
    except OSError as error:
        raise SweepError(f"{path} cannot be written ({error.strerror}); {by_hand}") from None


def _edited(lines: list[str], settings: Mapping[str, Any]) -> str:
    start = next((row for row, line in enumerate(lines) if re.match(rf"{SECTION}:\s*(#.*)?$", line)), None)
    if start is None:
        return "\n".join([*lines, "", fragment(settings)]) + "\n"
    end = next((row for row in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[row])), len(lines))
    written = [row for row in range(start + 1, end) if re.match(r"\s+[^\s#]", lines[row])]
    indent = re.match(r"\s*", lines[written[0]])[0] if written else DEFAULT_INDENT  # type: ignore[index]
    added = []
    for key, value in settings.items():
        row = next((row for row in written if lines[row].startswith(f"{indent}{key}:")), None)
        if row is None:
            added.append(f"{indent}{key}: {_value(value)}")
        else:
            lines[row] = _changed(lines[row], f"{indent}{key}: {_value(value)}")
    last = written[-1] if written else start
    return "\n".join([*lines[: last + 1], *added, *lines[last + 1 :]]) + "\n"


def _changed(line: str, without_comment: str) -> str:
    """The line with another value; its comment stays, and stays where it is if there is room."""
    comment = re.search(r"\s#.*$", line)
    if comment is None:
        return without_comment
    column = max(comment.start() + 1, len(without_comment) + 2)
    return without_comment.ljust(column) + comment[0][1:]


def _value(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)


def _plain(value: Any) -> Any:
    """With lists where YAML has no tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
