"""What a run measured."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
from pydantic import BaseModel, ConfigDict

__all__ = ["OpenLoopSummary", "Recorder", "Summary"]


class Summary(BaseModel):
    """Counts, rates and latencies of one run.

    Attributes:
        requests: Requests that ended, in an answer or not.
        failures: Those that ended in an error or a wrong answer.
        duration_s: Seconds the load was applied for.
        requests_per_second: Right answers a second.
        error_rate: The share of requests that failed, 0 to 1; 1 where nothing was asked.
        asking: What part of a core the asking process was busy for; near 1 or above, it is the load test that is
            measured, not the server.
        p50_ms: Half of the right answers came within this many milliseconds; None without a right answer.
        p95_ms: As `p50_ms`, for 95 in 100.
        p99_ms: As `p50_ms`, for 99 in 100.
        max_ms: The slowest right answer.
        releases: Which releases answered, and how often.
        errors: What went wrong, and how often.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    failures: int
    duration_s: float
    requests_per_second: float
    error_rate: float
    asking: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    releases: dict[str, int]
    errors: dict[str, int]


class OpenLoopSummary(Summary):
    """A `Summary` of requests that came at a rate, whether the server kept up or not.

    Attributes:
        rate: Requests scheduled a second.
        scheduled: Requests that were to be sent.
        sent: Those that were.
        late: Those sent more than `loadtest.open_loop.LATE_AFTER_S` after their time: too many others were under way,
            or this process was too slow.
        dropped: Those never sent, because the run was over; they count as failures.
    """

    rate: float
    scheduled: int
    sent: int
    late: int
    dropped: int


class Recorder:
    """Takes down one run's outcomes, one call a request. It is made when the run begins."""

    def __init__(self) -> None:
        """Start with none."""
        self._busy_before = time.process_time()
        self._latencies_ms: list[float] = []
        self._releases: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def answered(self, latency_ms: float, release: str) -> None:
        """Take down a right answer."""
        self._latencies_ms.append(latency_ms)
        self._releases[release] += 1

    def failed(self, reason: str) -> None:
        """Take down a request without a right answer; a reason of several lines becomes one."""
        self._errors[" ".join(reason.split())] += 1

    def summary(self, duration_s: float) -> Summary:
        """Return what was taken down in so many seconds."""
        answers, failures = len(self._latencies_ms), sum(self._errors.values())
        quantiles: list[float | None] = [None] * 4
        if answers:
            # "higher" names a latency that was seen, and never one below it.
            quantiles = [float(q) for q in np.percentile(self._latencies_ms, [50, 95, 99, 100], method="higher")]
        return Summary(
            requests=answers + failures,
            failures=failures,
            duration_s=duration_s,
            requests_per_second=answers / duration_s,
            error_rate=failures / (answers + failures) if answers + failures else 1.0,
            asking=(time.process_time() - self._busy_before) / duration_s,
            p50_ms=quantiles[0],
            p95_ms=quantiles[1],
            p99_ms=quantiles[2],
            max_ms=quantiles[3],
            releases=dict(self._releases),
            errors=dict(self._errors),
        )
