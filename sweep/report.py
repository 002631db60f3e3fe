"""A sweep as a table, a picture and JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from sweep.search import Outcome, Trial

__all__ = ["Report", "draw", "show"]

WIDTH = 120
"""Of tables in a log, in characters."""


class Report(BaseModel):
    """What is kept of a sweep.

    Attributes:
        domain: whose.
        release: its number.
        precision: of its encoder.
        machine: what the figures were taken on.
        server_cores: how many the server had.
        in_flight: requests at once.
        rounds: how often each candidate was measured, in turns with the others.
        seconds: how long each time.
        outcome: what was found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str
    release: int
    precision: str
    machine: dict[str, str | int]
    server_cores: int
    in_flight: tuple[int, ...]
    rounds: int
    seconds: float
    outcome: Outcome


def show(trial: Trial) -> None:
    """Print a trial as a table: the median over its rounds, and the range of the gain."""
    numbers = sorted(trial.measured[0].per_second)
    table = Table(title=f"{trial.question} (taken: *)", title_justify="left")
    table.add_column("")
    for number in numbers:
        table.add_column(f"{number} in flight", justify="right")
    table.add_column("gain", justify="right")
    for one in trial.measured:
        cells = [f"{np.median(one.p50_ms[n]):.1f} ms, {np.median(one.per_second[n]):.0f}/s" for n in numbers]
        gain = f"{np.median(one.gain):.2f} ({min(one.gain):.2f} to {max(one.gain):.2f})"
        name = f"{one.name} *" if one is trial.best else one.name
        table.add_row(name, *cells, gain if one is not trial.measured[0] else "")
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def draw(trials: Sequence[Trial], path: Path) -> None:
    """Draw the gain of every candidate: the median as a bar, every round as a dot."""
    import matplotlib  # noqa: PLC0415 - slow to import, and wanted at the end only

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    rows = [(f"{trial.question}: {one.name}", one, one is trial.best) for trial in trials for one in trial.measured]
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(rows) + 1.2), layout="constrained")
    for row, (_, one, is_best) in enumerate(reversed(rows)):
        axes.barh(row, float(np.median(one.gain)), color="#3b7ea1" if is_best else "#9aa7b1")
        axes.plot(one.gain, [row] * len(one.gain), "o", color="black", markersize=3)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("how much faster than the first of its question (blue: taken)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
