"""One training at a time in a plan's tuning folder: another would take its unfinished checkpoints for leftovers."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import TrainingError

_held: dict[Path, int] = {}
"""The locks of this process, by folder; the kernel drops them when it dies."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Make `folder` this process's alone until it is forgotten, an error ends the block, or the process ends.

    Past the block it stays so: the run is still to be made of what lies there.

    Raises:
        TrainingError: Another process has it.
        OSError: The folder cannot be made.
    """
    folder = folder.resolve()
    if folder not in _held:
        _held[folder] = _lock(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # an empty one is of no use to the next attempt
            folder.rmdir()
        os.close(_held.pop(folder))
        raise


def forget(folder: Path) -> None:
    """Remove `folder`, once the run holds what lies there."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        os.close(lock)


def _lock(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # its holder removed it in this moment
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise TrainingError(
                    f"{folder}: another training of the same settings and data works here; wait for it or stop it, "
                    "then give the command again"
                ) from None
            except OSError:  # a disk that knows no locks
                return lock
            if folder.is_dir() and folder.stat().st_ino == os.fstat(lock).st_ino:
                return lock
            os.close(lock)
