"""The load test's own errors."""

from __future__ import annotations

import click

__all__ = ["LoadTestError", "queue_too_short"]

MOST_IN_FLIGHT = 32
"""What benchmarks come to, if they are not asked for more."""


class LoadTestError(click.ClickException):
    """The load test could not be run. A missed SLA is no error: it is a result."""


def queue_too_short(url: str, in_flight: int) -> LoadTestError:
    """The error where a server refuses some of the requests that a benchmark keeps in flight."""
    enough = max(in_flight, MOST_IN_FLIGHT)
    return LoadTestError(
        f"{url}: refuses requests with {in_flight} in flight, because serving.max_queue_size is too small: set it to "
        f"{enough} or more, or to 0, in the domain's YAML; for `make bench`, `make export deploy` then"
    )
