"""Open the files that commands lock; whose they are is said where they are another user's."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from feedback.access import why

from .errors import PreflightError


def open_to_lock(path: Path) -> TextIO:
    """Open a file for writing, which is made if it is not there.

    Raises:
        PreflightError: it cannot be opened or made; the message names its owner where rights are missing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise PreflightError(f"cannot write {path}: {why(error, path)}") from None
