"""The keyed hash that stands for a person: the same for the same key, and no way back without it."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from .access import why
from .errors import StoreError

SHORTEST_KEY = 32
"""Bytes of the key file's content: a hash with a shorter key could be turned back by trying keys."""


class UserHasher:
    """HMAC-SHA256 of user ids under one key."""

    def __init__(self, key: bytes) -> None:
        """Take the key."""
        self._key = key

    def hash(self, user_id: str) -> str | None:
        """The person's hash, 64 hexadecimal digits; None for nobody in particular."""
        return hmac.digest(self._key, b"user:" + user_id.encode(), "sha256").hex() if user_id else None

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without saying anything about either."""
        return hmac.digest(self._key, b"fingerprint", "sha256").hex()[:16]


def read_key(path: Path, name: str = "the key of user ids") -> bytes:
    """Read a key file.

    Args:
        path: of the file.
        name: what error messages call it.

    Raises:
        StoreError: it cannot be read, or is too short to be a key.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise StoreError(f"{name}, {path}, cannot be read: {why(error, path)}") from None
    if len(key) < SHORTEST_KEY:
        raise StoreError(f"{name}, {path}, has {len(key)} bytes, at least {SHORTEST_KEY} are needed")
    return key


def create_key(path: Path, name: str = "the key of user ids") -> None:
    """Make a key file that its owner alone can read, whole or not at all; one that is there stays.

    Args:
        path: of the file.
        name: what error messages call it.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_hex(32).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces a key that another process has just made
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{name}, {path}, cannot be written: {why(error, path)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
