"""Folders and files that appear complete or not at all."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `target` to fill; it becomes `target` when the block ends without an error.

    Everything is flushed to disk before the rename, so that a power cut leaves a whole folder or none. With `replace`
    an older `target` stays until then, and after any error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    temporary, lock = _locked_folder(target)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _flush(path)
        _flush(temporary)
        if replace and target.exists():
            _swap(temporary, target)
        else:
            temporary.rename(target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` be the very file `source`, or a copy of it where the disk cannot link the two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it has its old content, or all of the new one."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders under `parent` that nobody holds: whoever wrote them was killed.

    A process id would not tell: in containers, the next process has that of the one that was killed.
    """
    for path in parent.glob(".*.tmp-*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # a file, or gone
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # somebody writes to it, or the disk knows no locks
            continue
        finally:
            os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new temporary sibling of `target`, and the lock on it, which ends with this process at the latest."""
    while True:
        temporary = target.parent / f".{target.name}.tmp-{secrets.token_hex(8)}"
        temporary.mkdir()
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # taken by the same one, or a disk that knows no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if temporary.is_dir():
                return temporary, lock
            os.close(lock)


def _swap(new: Path, target: Path) -> None:
    """Rename `new` to `target`, and remove the older `target`; it comes back if that fails."""
    aside, lock = _locked_folder(target)
    older = aside / target.name
    try:
        target.rename(older)
        new.rename(target)
    except BaseException:
        if older.exists() and not target.exists():
            older.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
