"""When to ask again: the decisions of both clients, without their input and output."""

from __future__ import annotations

import random
from collections.abc import Callable

from ._errors import DeadlineExceeded, InstructRecError, ServerUnavailable
from ._timeout import Deadline

__all__ = ["Attempts"]

FIRST_PAUSE = 0.05
"""Upper end of the first pause, in seconds; each further one is twice as long."""
LONGEST_PAUSE = 1.0
"""Upper end of any pause, in seconds."""


class Attempts:
    """The attempts at one request: up to `retries` more after the first, all before one deadline.

    Only an unavailable server is asked again: every other error would come again, or has used up the time. Repeating
    is safe: a recommendation changes nothing on the server, and an event that is known is not stored again.

    Args:
        deadline: Shared by all attempts and the pauses between them.
        retries: How many attempts may follow the first.
        uniform: Draws a number between two others.
    """

    def __init__(
        self, deadline: Deadline, retries: int, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        """Start with no attempt made."""
        self._deadline = deadline
        self._retries = retries
        self._uniform = uniform
        self._failed = 0
        self._unavailable: ServerUnavailable | None = None

    def remaining(self) -> float:
        """Return the seconds that the next attempt may take.

        Raises:
            DeadlineExceeded: None are left.
        """
        try:
            return self._deadline.remaining()
        except DeadlineExceeded:
            raise self._exceeded() from self._unavailable

    def pause_after(self, error: InstructRecError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            InstructRecError: `error` itself, where it is final.
            DeadlineExceeded: The deadline passed, or would before the pause is over; caused by `error`.
        """
        if isinstance(error, DeadlineExceeded):
            raise self._exceeded(error) from error
        if not isinstance(error, ServerUnavailable) or self._failed >= self._retries:
            raise error
        self._unavailable = error
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failed)
        self._failed += 1
        # Jitter keeps clients that were refused together from coming back together.
        pause = self._uniform(longest / 2, longest)
        if pause >= self.remaining():
            raise self._exceeded(error) from error
        return pause

    def _exceeded(self, error: InstructRecError | None = None) -> DeadlineExceeded:
        """Say that the server was unavailable, if ever it was, rather than that more time is needed."""
        return self._deadline.exceeded(self._unavailable or error)
