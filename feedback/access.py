"""Files that this user may not use: whose they are stands in the error."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import StoreError


def is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        StoreError: this user may not look.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {why(error, path)}") from None
    return True


def why(error: OSError, path: Path) -> str:
    """What the system says of a file and, where rights are missing, whose it or its folder is and what to do."""
    said = error.strerror or str(error)
    if not isinstance(error, PermissionError):
        return said
    for one in (path, *path.absolute().parents):  # a file that is not there, or hidden, is its folder's owner's
        with contextlib.suppress(OSError):
            number = one.stat().st_uid
            owner = str(number)
            with contextlib.suppress(KeyError):  # a user whom this machine has no name for
                owner = one.owner()
            remedy = "change its rights" if number == os.geteuid() else "run this as that user"
            return f"{said}; {one} belongs to the user {owner}: {remedy}"
    return said
