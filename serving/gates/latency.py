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
from ..errors import ServerError
from ..probe import ask

PAIRS = 24
LEVEL = 0.01
"""So improbable the pairs must be under a ratio that is just the budget."""
PATIENCE_SECONDS = 1.0
"""After so long no further pair is begun, if there are `FEWEST` already."""
FEWEST = 8
REQUEST_TIMEOUT_SECONDS = 5.0


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
    clock: Callable[[], float] = time.monotonic,
) -> LatencyComparison | None:
    """Ask both ensembles in turns, one request at a time.

    Args:
        url: of Triton's gRPC service.
        live: the ensemble that answers now.
        candidate: the other one.
        texts: real instructions; both ensembles get each.
        budget: the ratio that is allowed.
        pairs: how many at most.
        clock: seconds.

    Returns:
        The comparison; None if the live ensemble does not answer, with which nothing can be compared.

    Raises:
        ServerError: the candidate does not answer.
        BusyError: it refuses a request because too many wait.
    """
    times: dict[str, list[float]] = {live: [], candidate: []}
    began = clock()
    with grpc.InferenceServerClient(url) as client:
        for turn in range(-WARM_UPS, pairs):
            if turn == 0:
                began = clock()
            if turn >= FEWEST and clock() - began > PATIENCE_SECONDS:
                break
            text = texts[turn % len(texts)]
            for model in (live, candidate) if turn % 2 else (candidate, live):
                try:
                    answer = ask(client, model, text, timeout_seconds=REQUEST_TIMEOUT_SECONDS)
                except ServerError as error:
                    if model == live:
                        return None
                    raise type(error)(f"{model} {error.message}") from None
                if turn >= 0:
                    times[model].append(answer.milliseconds)
    return LatencyComparison(tuple(times[live]), tuple(times[candidate]), budget)


def _chance(successes: int, trials: int) -> float:
    """The probability of so many heads or more of a fair coin."""
    return float(sum(math.comb(trials, heads) for heads in range(successes, trials + 1)) / 2**trials)
