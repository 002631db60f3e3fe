"""How a process of the load test ends when it is told to."""

from __future__ import annotations

import signal
import sys

__all__ = ["exit_on_sigterm"]


def exit_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that what it started and changed is ended and put back.

    Its exit code is 143 then, as a shell's.
    """

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # another one would cut off the cleaning up
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
