"""Tests that stay valid however often one looks: their intervals cover the truth at all times at once.

A test of a fixed size, looked at every hour until it says yes, says yes by chance sooner or later. These do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
PRIOR_SCALE = 0.05
"""Of the mixture over differences of rates: it decides at which precision the interval is narrowest, not whether it
holds. With a standard error of 0.002 the interval is 3.5 standard errors wide to each side, with 0.05 it is 3.7."""


@dataclass(frozen=True)
class Interval:
    """A number measured, and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """Successes over trials, with people as the unit: what one person does again is no independent evidence.

    Attributes:
        people: how many.
        successes: of all of them.
        trials: likewise.
        variance: of the rate (linearised ratio of two sums; Cochran 1977, chapter 6).
    """

    people: int
    successes: float
    trials: float
    variance: float

    @property
    def value(self) -> float:
        """The rate."""
        return self.successes / self.trials

    @classmethod
    def of(cls, successes: npt.ArrayLike, trials: npt.ArrayLike) -> Rate:
        """The rate of people's successes [n] and trials [n], each person with a trial at least.

        Raises:
            ValueError: there are fewer than two people.
        """
        won, tried = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
        people = len(tried)
        if people < 2:
            raise ValueError("a rate needs two people at least")
        total = tried.sum()
        residuals = won - won.sum() / total * tried
        variance = people / (people - 1) * float(residuals @ residuals) / total**2
        return cls(people, float(won.sum()), float(total), variance)


def difference(live: Rate, canary: Rate, *, level: float = LEVEL) -> Interval:
    """The canary's rate less the live one's, with an interval that may be looked at at any time.

    The estimate's score is a Brownian motion in the time of information, 1 / variance (Jennison and Turnbull 1999,
    chapter 11), of which a normal mixture makes a sequence of intervals: Robbins 1970; Johari, Pekelis and Walsh,
    "Always valid inference", arXiv 1512.04922. Asymptotic: it wants some dozens of people and of successes.
    """
    value = canary.value - live.value
    variance = live.variance + canary.variance
    if variance <= 0:
        return Interval(value, -math.inf, math.inf)
    prior = PRIOR_SCALE**2
    reach = math.sqrt(variance * (1 + variance / prior) * (math.log1p(prior / variance) - 2 * math.log(level)))
    return Interval(value, value - reach, value + reach)


def error_rate(errors: int, requests: int, *, level: float = LEVEL) -> Interval:
    """A share of requests, with an exact interval that may be looked at at any time.

    Those shares under which the mixture of all shares (uniform) is less than 1 / level times as likely: Robbins 1970,
    "Statistical methods related to the law of the iterated logarithm".

    Raises:
        ValueError: there are more errors than requests.
    """
    if not 0 <= errors <= requests:
        raise ValueError(f"{errors} errors of {requests} requests")
    if requests == 0:
        return Interval(0.0, 0.0, 1.0)
    value = errors / requests
    mixture = math.lgamma(errors + 1) + math.lgamma(requests - errors + 1) - math.lgamma(requests + 2)

    def excluded(share: float) -> bool:
        likelihood = _times_log(errors, share) + _times_log(requests - errors, 1 - share)
        return mixture - likelihood >= -math.log(level)

    return Interval(value, _edge(excluded, 0.0, value), _edge(excluded, 1.0, value))


def _times_log(count: int, share: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf


def _edge(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where the interval ends between a share inside it and the end of the scale."""
    if not excluded(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside
