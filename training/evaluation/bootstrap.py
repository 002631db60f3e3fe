"""Confidence intervals: the percentile bootstrap (Efron and Tibshirani 1993, chapter 13), seeded and vectorised."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2_000
LEVEL = 0.95
CHUNK_ENTRIES = 2_000_000  # counts turned into floats at once, 16 MB


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, and the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sampled:
    """A statistic of the sample, and of each resample [R]. Two of one `Bootstrap` are paired."""

    value: float
    resampled: Floats

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference, resample by resample: a paired comparison if both come from one `Bootstrap`."""
        return Sampled(self.value - other.value, self.resampled - other.resampled)

    def estimate(self) -> Estimate:
        """The value with the percentiles that enclose 95 % of the resamples."""
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(self.resampled, [tail, 100 - tail])
        return Estimate(float(self.value), float(low), float(high))


class Bootstrap:
    """Resamples of `observations` observations with replacement; equal arguments give equal resamples."""

    def __init__(self, observations: int, seed: int, resamples: int = RESAMPLES) -> None:
        """Draw how often each observation is in each resample, uint16 [R, n].

        Raises:
            ValueError: There is nothing to resample.
        """
        if observations < 1 or resamples < 1:
            raise ValueError(f"{observations} observations cannot be resampled {resamples} times")
        generator = np.random.default_rng(seed)
        self._counts = np.empty((resamples, observations), dtype=np.uint16)
        for row in range(resamples):
            drawn = generator.integers(0, observations, observations)
            self._counts[row] = np.bincount(drawn, minlength=observations)

    def sums(self, columns: npt.ArrayLike) -> Floats:
        """The sum of each column over each resample, float64 [R, C], of observations [n, C]."""
        values = np.asarray(columns, dtype=np.float64)
        size = max(1, CHUNK_ENTRIES // len(values))
        parts = [
            self._counts[start : start + size].astype(np.float64) @ values
            for start in range(0, len(self._counts), size)
        ]
        return np.concatenate(parts)

    def mean(self, values: npt.ArrayLike) -> Sampled:
        """The mean of `values` [n]."""
        observed = np.asarray(values, dtype=np.float64)
        return Sampled(float(observed.mean()), self.sums(observed[:, None])[:, 0] / len(observed))
