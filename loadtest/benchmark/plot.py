"""The benchmark as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def draw(ratios: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw each contender's share of the encoder's best rate: the median as a bar, every round as a dot."""
    import matplotlib  # noqa: PLC0415 - slow to import, and wanted at the end only

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    names = list(ratios)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    for row, name in enumerate(names):
        values = ratios[name]
        axes.barh(row, float(np.median(values)), color="#9aa7b1" if name.startswith("encoder") else "#3b7ea1")
        axes.plot(values, [row] * len(values), "o", color="black", markersize=3)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the bare encoder's best rate over batch shapes")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
