"""The time of an answer of two ensembles on one server, by requests sent in turns so that both meet the same moment.

What is judged is the ratio within each pair, by a sign test (exact, without an assumption about how times are
distributed): is the ratio above the budget in significantly more, or significantly fewer, than half of the pairs?
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritonclient import grpc

from ..candidate import WARM_UPS
from ..channel import connect
from ..errors import BusyError, LateError, ServerError
from ..probe import REFUSED_PAUSE_SECONDS, ask

PAIRS = 24
LEVEL = 0.01
"""So improbable the pairs must be under a ratio that is just the budget."""
PATIENCE_SECONDS = 1.0
"""After so long no further pair is begun, if there are `FEWEST` already."""
FEWEST = 8
REQUEST_TIMEOUT_SECONDS = 5.0
LEAVING_OUT_SECONDS = 6.0
"""So long pairs are left out: one that the live release is late for, or many refused."""


@dataclass(frozen=True)
class LatencyComparison:
    """The times of answers, pair by pair.

    Attributes:
        live: milliseconds of the live release's answers.
        candidate: of the other's, each just before or after.
        budget: the ratio that is allowed.
    """

    live: tuple[float, ...]
    candidate: tuple[float, ...]
    budget: float

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(after / before for before, after in zip(self.live, self.candidate, strict=True))

    @property
    def is_over(self) -> bool:
        """Whether it is over the budget, beyond chance."""
        return _chance(self._over(), len(self.live)) <= LEVEL

    @property
    def is_within(self) -> bool:
        """Whether it is within the budget, beyond chance."""
        pairs = len(self.live)
        return _chance(pairs - self._over(), pairs) <= LEVEL

    def _over(self) -> int:
        return sum(after > self.budget * before for before, after in zip(self.live, self.candidate, strict=True))

    def __str__(self) -> str:
        """The comparison in words and numbers."""
        return (
            f"an answer takes {self.ratio:.2f} times the live release's time (medians "
            f"{statistics.median(self.candidate):.1f} and {statistics.median(self.live):.1f} ms; over the allowed "
            f"{self.budget:g} in {self._over()} of {len(self.live)} pairs of requests)"
        )


def compare_latency(
    url: str,
    live: str,
    candidate: str,
    texts: Sequence[str],
    budget: float,
    *,
    pairs: int = PAIRS,
    begun: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyComparison | None:
    """Ask both ensembles in turns, one request at a time.

    Pairs of which a request is refused, or that the live ensemble is late for, as a busy server may be, are left out.

    Args:
        url: of Triton's gRPC service.
        live: the ensemble that answers now.
        candidate: the other one.
        texts: real instructions; both ensembles get each.
        budget: the ratio that is allowed.
        pairs: how many at most.
        begun: how many at most with those that are left out and `WARM_UPS`, so that neither ensemble gets more
            requests; as many as without any that is left out if None.
        clock: seconds.

    Returns:
        The comparison; None if the live ensemble answers fewer than `FEWEST` pairs, with which nothing can be compared.

    Raises:
        ServerError: the candidate does not answer.
        BusyError: it refuses so many requests that too few pairs are left.
    """
    answered: list[tuple[float, float]] = []  # the first are warm-ups
    missed: _MissedError | None = None
    first = began = clock()
    with connect(url) as client:
        for turn in range(begun or WARM_UPS + pairs):
            measured = len(answered) - WARM_UPS
            if measured == pairs or (measured >= FEWEST and clock() - began > PATIENCE_SECONDS):
                break
            try:
                answered.append(_ask_both(client, live, candidate, texts[turn % len(texts)], live_first=bool(turn % 2)))
            except _MissedError as error:
                missed = error
                if not error.may_pass or clock() - first > LEAVING_OUT_SECONDS:
                    break
                time.sleep(REFUSED_PAUSE_SECONDS)
            if len(answered) == WARM_UPS:
                began = clock()
    times = answered[WARM_UPS:]
    if len(times) >= min(FEWEST, pairs):
        return LatencyComparison(tuple(one for one, _ in times), tuple(other for _, other in times), budget)
    if missed is not None and missed.model == candidate:
        raise BusyError(f"{candidate} {missed.error.message}")
    return None


class _MissedError(Exception):
    """A pair that lacks an answer; the candidate only ever misses one by a refusal."""

    def __init__(self, model: str, error: ServerError) -> None:
        self.model, self.error = model, error
        self.may_pass = isinstance(error, BusyError | LateError)


def _ask_both(
    client: grpc.InferenceServerClient, live: str, candidate: str, text: str, *, live_first: bool
) -> tuple[float, float]:
    """The milliseconds of both ensembles' answers to one instruction."""
    milliseconds = {}
    for model in (live, candidate) if live_first else (candidate, live):
        try:
            answer = ask(client, model, text, timeout_seconds=REQUEST_TIMEOUT_SECONDS)
        except ServerError as error:
            if model == live or isinstance(error, BusyError):
                raise _MissedError(model, error) from None
            raise type(error)(f"{model} {error.message}") from None
        milliseconds[model] = answer.milliseconds
    return milliseconds[live], milliseconds[candidate]


def _chance(successes: int, trials: int) -> float:
    """The probability of so many heads or more of a fair coin."""
    return float(sum(math.comb(trials, heads) for heads in range(successes, trials + 1)) / 2**trials)
