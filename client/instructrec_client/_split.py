"""Who is answered by the canary: the decisions of both splits, without their input and output."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ._errors import (
    DeadlineExceeded,
    ModelNotFound,
    ModelUnloaded,
    ProtocolError,
    ServerError,
    ServerUnavailable,
)

__all__ = ["FALLS_BACK", "GONE", "CanaryState", "SplitCounts", "SplitState", "falls_to_canary", "read_state"]

FALLS_BACK = (ModelNotFound, ServerUnavailable, ServerError, ProtocolError, DeadlineExceeded)
"""What a canary may fail with without the person noticing. A request that is wrong is so for both."""
GONE = (ModelNotFound, ModelUnloaded)
"""What the server says of a canary that was taken down: Triton remembers its name."""
PATIENCE = 0.5
"""Of the time that is left, the canary gets so much: the live release has to have its turn."""
REFRESH = 60.0
"""Seconds for which what the server says of its canary is taken as given."""
ASKING_SECONDS = 1.0
"""So long the call whose turn it is waits to hear whether there is a canary; without an answer, it is asked again."""
ASKING_SHARE = 0.2
"""Of the time that is left to it, such a call waits so much at most: it is there to recommend."""


@dataclass(frozen=True)
class CanaryState:
    """What the server says of a domain's canary.

    Attributes:
        release: The canary's release.
        share: Of the people that it is meant to answer, 0 to 1.
    """

    release: str
    share: float


@dataclass(frozen=True)
class SplitCounts:
    """What became of the requests so far.

    Attributes:
        live: Answered by the live release, as they should.
        canary: Answered by the canary.
        fallback: Meant for the canary, which did not answer, and answered by the live release.
        shadow: Sent to the canary as well, its answer thrown away.
        shadow_failed: Of these, not answered.
        shadow_dropped: Not sent as shadows: too many were on their way.
    """

    live: int = 0
    canary: int = 0
    fallback: int = 0
    shadow: int = 0
    shadow_failed: int = 0
    shadow_dropped: int = 0


def falls_to_canary(user_id: str, domain: str, release: str, share: float) -> bool:
    """Return whether a person belongs to the share of the people whom a canary answers.

    The first 64 bits of a sha256 over domain, release and person, against the share: the same in every process, on
    every machine and in every version. Who is in a share is in every larger one. Another release draws other people.
    Nobody in particular ("") belongs to the live release.
    """
    if not user_id:
        return False
    drawn = hashlib.sha256("\0".join((domain, release, user_id)).encode()).digest()
    return int.from_bytes(drawn[:8], "big") < share * 2**64


def read_state(release: str, parameters: Mapping[str, str]) -> CanaryState:
    """Read the share that the server publishes with its canary.

    Raises:
        ProtocolError: What is called as a canary is none.
    """
    try:
        share = float(parameters["canary_share"])
    except (KeyError, ValueError):
        raise ProtocolError("the model of that name publishes no canary_share: it is no canary") from None
    return CanaryState(release, min(1.0, max(0.0, share)))


class SplitState:
    """What a split knows and counts; threads may share it.

    Args:
        domain: Whose canary.
        share: Instead of the share that the server publishes; None takes the server's.
        refresh: Seconds until the server is asked anew.
        clock: Seconds from a monotonic clock.

    Raises:
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        domain: str,
        share: float | None,
        refresh: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know nothing yet."""
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"share is a number from 0 to 1, got {share!r}")
        if not refresh > 0:
            raise ValueError(f"refresh is a number of seconds above 0, got {refresh!r}")
        self._domain = domain
        self._share = share
        self._refresh = refresh
        self._clock = clock
        self._lock = threading.Lock()
        self._canary: CanaryState | None = None
        self._next_look = -math.inf
        self._counts = SplitCounts()

    @property
    def counts(self) -> SplitCounts:
        """What became of the requests so far."""
        with self._lock:
            return self._counts

    @property
    def canary(self) -> CanaryState | None:
        """The canary as it is known now."""
        with self._lock:
            return self._canary

    def is_canarys(self, user_id: str) -> bool:
        """Return whether a person's request goes to the canary."""
        canary = self.canary
        if canary is None:
            return False
        share = canary.share if self._share is None else self._share
        return falls_to_canary(user_id, self._domain, canary.release, share)

    def has_to_ask(self) -> bool:
        """Return whether the server has to be asked now; true for one caller each time.

        Where nothing is learned from it, another caller asks soon, not after `refresh` seconds.
        """
        with self._lock:
            now = self._clock()
            if now < self._next_look:
                return False
            self._next_look = now + min(ASKING_SECONDS, self._refresh)
            return True

    def learn(self, canary: CanaryState | None) -> None:
        """Take what the server says; None: there is no canary."""
        with self._lock:
            self._canary = canary
            self._next_look = self._clock() + self._refresh

    def canary_failed(self, error: Exception) -> None:
        """Take notice of what the canary failed with."""
        if isinstance(error, GONE):
            with self._lock:
                self._canary = None  # it was taken down: nobody else need try before the next look

    def count(self, what: str) -> None:
        """Count one request."""
        with self._lock:
            self._counts = replace(self._counts, **{what: getattr(self._counts, what) + 1})
