"""What can go wrong between a run and a release.

```
ExportError              a graph could not be made, quantised or read
└── VerificationError    a graph was made, and is not close enough to torch; or what goes with it does not fit
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from export.report import VerificationReport

__all__ = ["ExportError", "VerificationError"]


class ExportError(click.ClickException):
    """A graph could not be made, quantised or read. The command line prints the message as one line and exits 1."""


class VerificationError(ExportError):
    """A graph, or what a release has beside it, is not close enough to the run, so no release may be made of it.

    Attributes:
        report: Every check with its measured value and its bar.
        before: The reports of what was made on the way, in that order.
        advice: What to do, where the message knows.
    """

    def __init__(
        self,
        report: VerificationReport,
        *,
        before: Sequence[VerificationReport] = (),
        advice: str = "",
        kept_at: Path | None = None,
    ) -> None:
        """Builds the message from the checks that failed and, where it is known, the layer that diverges first.

        Args:
            report: Of what failed.
            before: Those of what was made on the way.
            advice: What to do, as a sentence.
            kept_at: Where the whole report was written, for the reader of the message.
        """
        failed = "; ".join(
            f"{check.name} is {check.measured:.6g}, the bar is {check.relation} {check.bar:.6g}"
            for check in report.failed
        )
        place = f" First divergence: {report.first_divergence}." if report.first_divergence else ""
        super().__init__(
            f"The verification of {report.graph} failed: {failed}.{place}{' ' * bool(advice)}{advice} "
            "No release was made." + (f" The report is in {kept_at}." if kept_at else "")
        )
        self.report = report
        self.before = tuple(before)
        self.advice = advice
