"""The load test's own errors."""

from __future__ import annotations

import click

__all__ = ["LoadTestError"]


class LoadTestError(click.ClickException):
    """The load test could not be run. A missed SLA is no error: it is a result."""
