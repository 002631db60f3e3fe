"""Writes what a few-shot study found: JSON to compute with, Markdown and a plot to look at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from training.atomic import new_folder
from training.dataset import Split
from training.errors import TrainingError
from training.shots_study import PLAIN, PLAIN_C, Measurement


@dataclass(frozen=True)
class StudyFacts:
    """What a study was made of. `encoders` maps each method to the sha256 of its encoder's weights."""

    domain: str
    source: str
    dataset_fingerprint: str
    weak_labels: bool
    split: Split
    draws: int
    encoders: Mapping[str, str]


def cell(measurement: Measurement) -> str:
    """Mean and standard deviation over the draws, and the range, in percent: `86.1 ± 2.4 (83.2 to 90.0)`."""
    values = 100 * np.array(measurement.top1_accuracy)
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation} ({values.min():.1f} to {values.max():.1f})"


def write_study(folder: Path, facts: StudyFacts, measurements: Sequence[Measurement]) -> Path:
    """Write `shots.json`, `shots.md` and `shots.png` into a new folder below `folder`, all or none; its path.

    Raises:
        TrainingError: The folder cannot be written, or matplotlib is missing.
    """
    now = datetime.now(timezone.utc)
    target = folder / f"shots-{now:%Y%m%dT%H%M%S%f}"
    try:
        with new_folder(target) as temporary:
            _plot(temporary / "shots.png", facts, measurements)
            (temporary / "shots.md").write_text(_markdown(facts, measurements), encoding="utf-8")
            tree = {
                "schema_version": 1,
                "created": now.isoformat(timespec="seconds"),
                **asdict(facts),
                "measurements": [_figures(one) for one in measurements],
            }
            content = json.dumps(tree, ensure_ascii=False, indent=2, allow_nan=False)
            (temporary / "shots.json").write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written ({error.strerror}); nothing is left of it") from None
    return target


def _figures(one: Measurement) -> dict[str, Any]:
    values = np.array(one.top1_accuracy)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {**asdict(one), "mean": float(values.mean()), "standard_deviation": deviation}


def _markdown(facts: StudyFacts, measurements: Sequence[Measurement]) -> str:
    shots = sorted({one.shots for one in measurements})
    cells = {(one.method, one.shots): cell(one) for one in measurements}
    weak = " The labels were set by rules (weak)." if facts.weak_labels else ""
    sizes = measurements[0].instructions
    size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    lines = [
        f"# Few shots: {facts.domain}, source {facts.source}",
        "",
        f"Top-1 accuracy in percent on {size} instructions of the {facts.split} split: mean ± standard deviation over "
        f"{facts.draws} draws, and their range.{weak}",
        "",
        "| training instructions a label | " + " | ".join(map(str, shots)) + " |",
        "|---|" + "---|" * len(shots),
        *(
            f"| {method} | " + " | ".join(cells[method, count] for count in shots) + " |"
            for method in [PLAIN, *facts.encoders]
        ),
        "",
        f"The plain baseline is a logistic regression (C = {PLAIN_C:g}) on the vectors of the first encoder, taught "
        "with the drawn instructions alone, or with items where none are drawn. A head is also taught with items, and "
        "stopped early on as many validation instructions a label.",
        "",
        "![accuracy by number of instructions](shots.png)",
        "",
        *(f"- {method}: encoder sha256 `{digest}`" for method, digest in facts.encoders.items()),
        "",
    ]
    return "\n".join(lines)


def _plot(path: Path, facts: StudyFacts, measurements: Sequence[Measurement]) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra; a Figure of its own needs no display
    except ImportError:
        raise TrainingError("the plot needs matplotlib: pip install 'instructrec[evaluation]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shots = sorted({one.shots for one in measurements})
    places = {count: place for place, count in enumerate(shots)}
    for method in [PLAIN, *facts.encoders]:
        own = sorted((one for one in measurements if one.method == method), key=lambda one: one.shots)
        values = [100 * np.array(one.top1_accuracy) for one in own]
        x, means = [places[one.shots] for one in own], np.array([value.mean() for value in values])
        (line,) = axes.plot(x, means, marker="o", label=method, linestyle="--" if method == PLAIN else "-")
        lows, highs = [value.min() for value in values], [value.max() for value in values]
        axes.fill_between(x, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(list(places.values()), [str(count) for count in shots])
    axes.set_xlabel("labelled training instructions a label")
    axes.set_ylabel(f"top-1 accuracy on {facts.split}, %")
    axes.set_title(f"{facts.domain}: mean and range of {facts.draws} draws")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
