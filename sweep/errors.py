"""The room's own error."""

from __future__ import annotations

import click

__all__ = ["SweepError"]


class SweepError(click.ClickException):
    """Nothing can be measured, or what was measured cannot be written down."""
