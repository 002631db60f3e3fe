"""The task's metrics of a release against those of the live one, on the test instructions that both have results for.

A test of non-inferiority: the burden of proof is the new release's. It passes if the lower end of the 95 % interval of
its difference to the live one (paired percentile bootstrap, one-sided; Efron and Tibshirani 1993, chapter 13) is above
minus the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..evidence import TaskResults
from .settings import GateSettings

RESAMPLES = 2_000
LEVEL = 0.95
DRAWN_AT_ONCE = 500_000
"""Of the numbers of all resamples, 4 MB."""


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two releases over the same instructions; all numbers are shares of 1.

    Attributes:
        metric: its name.
        instructions: how many were compared.
        live: the live release's mean.
        candidate: the other's.
        low: lower end of the difference's one-sided 95 % interval.
        margin: how far the metric may fall.
    """

    metric: str
    instructions: int
    live: float
    candidate: float
    low: float
    margin: float

    @property
    def passed(self) -> bool:
        """Whether the fall is within the margin, at 95 %."""
        return self.low > -self.margin

    def __str__(self) -> str:
        """The comparison in words and numbers."""
        return (
            f"{self.metric} {100 * (self.candidate - self.live):+.1f} points on {self.instructions} test instructions "
            f"({self.live:.3f} to {self.candidate:.3f}; at 95 % no lower than {100 * self.low:+.1f}, "
            f"allowed {-100 * self.margin:+.1f})"
        )


class NotComparableError(Exception):
    """The two releases share too few test instructions, or too few results of a metric."""


def compare_task(
    live: TaskResults | None, candidate: TaskResults | None, settings: GateSettings
) -> list[MetricComparison]:
    """Compare two releases by every metric that the live one has on enough instructions.

    Raises:
        NotComparableError: one has no results, or they share too few instructions of such a metric; the message says
            so.
    """
    if live is None or candidate is None:
        lacking = "the live release" if live is None else "the new one"
        raise NotComparableError(f"{lacking} brings no results on test instructions")
    found = []
    shared = 0
    for metric, margin in settings.margins.items():
        before, after = live.values(metric), candidate.values(metric)
        keys = [key for key in before if key in after]
        shared = max(shared, len(keys))
        if len(keys) >= settings.min_instructions:
            found.append(_compare(metric, [before[key] for key in keys], [after[key] for key in keys], margin))
        elif len(before) >= settings.min_instructions:  # or a release would pass by results that it leaves out
            raise NotComparableError(
                f"of {metric} the two share {len(keys)} test instructions, {settings.min_instructions} are needed "
                f"(gates.min_instructions; live {len(before)}, new {len(after)})"
            )
    if not found:
        raise NotComparableError(
            f"the two share {shared} test instructions, {settings.min_instructions} are needed "
            f"(gates.min_instructions; live {len(live.instructions)}, new {len(candidate.instructions)})"
        )
    return found


def _compare(metric: str, live: Sequence[float], candidate: Sequence[float], margin: float) -> MetricComparison:
    before, after = np.asarray(live, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    return MetricComparison(
        metric=metric,
        instructions=len(before),
        live=float(before.mean()),
        candidate=float(after.mean()),
        low=lower_bound(after - before),
        margin=margin,
    )


def lower_bound(differences: npt.NDArray[np.float64], *, level: float = LEVEL, seed: int = 0) -> float:
    """Lower end of the one-sided interval of the mean of paired differences [n]."""
    generator = np.random.default_rng(seed)
    count = len(differences)
    size = max(1, DRAWN_AT_ONCE // count)
    means = [
        differences[generator.integers(0, count, (min(size, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, size)
    ]
    return float(np.quantile(np.concatenate(means), 1 - level))
