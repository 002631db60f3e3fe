"""How a process of the load test ends when it is told to."""

from __future__ import annotations

import signal
import sys

__all__ = ["exit_when_told"]


def exit_when_told() -> None:
    """Have SIGTERM, and SIGHUP of a terminal that closes, end this process as Ctrl-C does.

    So what it started and changed is ended and put back. Its exit code is 143 then, or 129, as a shell's. Under `nohup`
    the terminal may close.
    """

    def end(number: int, _: object) -> None:
        for other in told:
            signal.signal(other, signal.SIG_IGN)  # another one would cut off the cleaning up
        sys.exit(128 + number)

    told = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    for number in told:
        signal.signal(number, end)
