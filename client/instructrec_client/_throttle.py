"""How much of its work a client holds back from a server that refuses some: without input and output.

A server that is asked for more than it can do spends much of its time refusing, and answers fewer than it could. So a
client sends only somewhat more than is accepted, and refuses the rest itself ("adaptive throttling": Site Reliability
Engineering, O'Reilly 2016, chapter "Handling Overload").
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._errors import QueueFull

__all__ = ["Throttle"]

MEMORY_SECONDS = 5.0
"""After so long, what happened counts a third (1/e)."""
EXCESS = 2.0
"""So many times what the server accepts is sent. With less, it would take long to notice that it accepts more again."""
MOST = 0.9
"""So much is held back at most: only what is sent can tell that a server which refused everything has room again."""
GRACE = 20
"""So many refused requests hold nothing back: a moment's peak is no overload."""


class Throttle:
    """What became of a client's requests lately, and which further ones it sends.

    With r requests, a of them accepted, the next one is held back with probability (r - 2·a - 20) / (r + 1), at
    least 0 and at most 0.9. So under overload some 2·a are sent, or a tenth of all if that is more; a server that
    refused everything and has room again gets everything after 16 seconds at most, sooner where little is asked.
    A request under way is none of the r: that many are asked at once says nothing of what the server refuses.

    Args:
        uniform: Draws a number between two others.
        clock: Seconds from a monotonic clock.
    """

    def __init__(
        self,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with a server that accepts everything."""
        self._uniform = uniform
        self._clock = clock
        self._requests = self._accepted = 0.0
        self._counted = clock()
        self._lock = threading.Lock()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Send a request within this, or learn that it is held back.

        Raises:
            QueueFull: The request is not to be sent.
        """
        with self._lock:
            self._forget()
            excess = self._requests - EXCESS * self._accepted - GRACE
            held_back = min(MOST, max(0.0, excess / (self._requests + 1)))
        if held_back and self._uniform(0, 1) < held_back:
            self._count(accepted=False)
            raise QueueFull("held back by this client, because the server refuses much: send less, or add servers")
        try:
            yield
        except QueueFull:
            self._count(accepted=False)
            raise
        except BaseException:
            self._count(accepted=True)  # other errors say nothing of how much the server can do
            raise
        self._count(accepted=True)

    def _count(self, *, accepted: bool) -> None:
        with self._lock:
            self._requests += 1
            self._accepted += accepted

    def _forget(self) -> None:
        now = self._clock()
        kept = math.exp((self._counted - now) / MEMORY_SECONDS)
        self._requests, self._accepted, self._counted = self._requests * kept, self._accepted * kept, now
