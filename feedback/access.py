"""Files that this user may not use: whose they are stands in the error."""

from __future__ import annotations

import contextlib
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
    """What the system says of a file and, where it is or lies in another user's, whose and what to do."""
    said = error.strerror or str(error)
    if not isinstance(error, PermissionError):
        return said
    for one in (path, *path.absolute().parents):  # a file that is not there, or hidden, is its folder's owner's
        with contextlib.suppress(OSError):
            owner = str(one.stat().st_uid)
            with contextlib.suppress(KeyError):  # a user whom this machine has no name for
                owner = one.owner()
            return f"{said}; {one} belongs to the user {owner}: run this as that user"
    return said
