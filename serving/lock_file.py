"""Open the files that commands lock; whose they are is said where they are another user's."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TextIO

from .errors import PreflightError


def open_to_lock(path: Path) -> TextIO:
    """Open a file for writing, which is made if it is not there.

    Raises:
        PreflightError: it cannot be opened or made; the message names its owner where that is another user.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except PermissionError as error:
        there, uid = _owner(path)
        remedy = "make it writable for yourself"
        if uid != os.geteuid():
            remedy = f"run this as {_name(uid)}, or choose another VAR"
        raise PreflightError(
            f"cannot write {path} ({error.strerror}): {there} belongs to {_name(uid)}; {remedy}"
        ) from None
    except OSError as error:
        raise PreflightError(f"cannot write {path}: {error.strerror or error}") from None


def _owner(path: Path) -> tuple[Path, int]:
    """What is there of a path, and whose it is."""
    for one in (path, *path.parents):
        try:
            return one, one.stat().st_uid
        except OSError:  # not there, or in a folder that nobody else may look into
            continue
    return path, os.geteuid()


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # of another machine, or of outside a container
        return f"user {uid}"
