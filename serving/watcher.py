"""The watcher: a process beside the embedded server that looks after it until `make stop`."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from .errors import ServingError
from .healing import Healer
from .layout import Layout
from .lock_file import open_to_lock

INTERVAL_SECONDS = 2.0
LINES_KEPT_BYTES = 1 << 20
"""A log that has grown beyond this is put aside when the next watcher starts."""

logger = logging.getLogger(__name__)


def start(layout: Layout) -> None:
    """Start a watcher that outlives this command; if one is there already, the new one ends at once."""
    log = layout.watcher_log
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.is_file() and log.stat().st_size > LINES_KEPT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as stream:
        subprocess.Popen(  # noqa: S603 - every part of the command is ours
            [sys.executable, "-m", "serving", "watch", "--var", str(layout.var)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_watching(layout: Layout) -> bool:
    """Whether a watcher looks after the server of a `VAR`.

    Raises:
        PreflightError: the file of its lock cannot be written.
    """
    with _only_one(layout) as first:
        return not first


def watch(layout: Layout, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Look after the server until it is stopped on purpose; one watcher a `VAR`, a second one returns at once.

    What it does and why goes to the log.

    Raises:
        PreflightError: the file of its lock cannot be written.
    """
    with _only_one(layout) as first:
        if not first:
            return
        logger.info("watching the server of %s (process %d)", layout.var, os.getpid())
        healer = Healer(layout)
        while layout.server_state.is_file():
            try:
                for line in healer.look():
                    logger.warning("%s", line)
            except ServingError as error:
                logger.error("could not mend it: %s", error.message)
            except Exception:  # a watcher that dies of one odd look watches nothing
                logger.exception("a look failed")
            time.sleep(interval_seconds)
        logger.info("the server was stopped, so the watcher ends")


@contextlib.contextmanager
def _only_one(layout: Layout) -> Iterator[bool]:
    """True for the first watcher; the kernel drops the lock when it dies."""
    with open_to_lock(layout.watcher_lock) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
