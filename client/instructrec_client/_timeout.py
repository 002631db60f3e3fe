"""How long a call may take: the value a caller gives, and the deadline it becomes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ._errors import DeadlineExceeded, InstructRecError

__all__ = ["MORE_TIME", "Deadline", "Timeout"]

MORE_TIME = "give timeout=… more seconds, or ask for less at once"
"""What to do about a server that answers too late."""
LONGEST = 1e9
"""Seconds, some thirty years; gRPC's own clock ends at nine times that, and fails at once there."""


@dataclass(frozen=True)
class Timeout:
    """The time a whole call may take, all its retries included.

    Attributes:
        total: Seconds, above zero, at most `LONGEST`.

    Raises:
        ValueError: `total` is no such number.
    """

    total: float = 5.0

    def __post_init__(self) -> None:
        """Check the value."""
        number = isinstance(self.total, (int, float)) and not isinstance(self.total, bool)
        if not number or not 0 < self.total <= LONGEST:
            raise ValueError(f"a timeout is a number of seconds above 0 and at most {LONGEST:g}, got {self.total!r}")

    @classmethod
    def of(cls, value: Timeout | float) -> Timeout:
        """Return `value` as a Timeout; a number means seconds."""
        return value if isinstance(value, Timeout) else cls(value)


class Deadline:
    """The moment until which one call may go on.

    Args:
        timeout: The time from now.
        clock: Seconds from a monotonic clock.
    """

    def __init__(self, timeout: Timeout, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the time."""
        self.timeout = timeout
        self._clock = clock
        self._end = clock() + timeout.total

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            DeadlineExceeded: None are left.
        """
        left = self._end - self._clock()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self, met: InstructRecError | None = None) -> DeadlineExceeded:
        """Return the error that says this deadline passed, and what the call had met by then."""
        return DeadlineExceeded(f"no answer within {self.timeout.total:g} s: {met or MORE_TIME}")
