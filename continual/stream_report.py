"""A measured stream as a table, a plot and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from training.evaluation.bootstrap import Estimate

from .stream import Course, Stream

COLOURS = {
    "continual": "#1f5fa8",
    "full retraining": "#3f7f4f",
    "naive fine-tuning": "#c8752d",
    "replay alone": "#8a8f98",
    "anchor alone": "#b9a2c9",
}


def markdown(stream: Stream, courses: Sequence[Course]) -> str:
    """The steps, and what became of each system."""
    seen: set[int] = set()
    lines = ["| step | from | texts | labels that are new |", "|---|---|---|---|"]
    for step, span in enumerate(stream.spans):
        labels = set(stream.label_ids[stream.step == step].tolist())
        texts = int((stream.step == step).sum())
        lines.append(f"| {step + 1} | {span} | {texts:,} | {len(labels - seen)} |")
        seen |= labels
    lines += [
        "",
        "| | average at the end | mean of the averages | forgetting, points | just learned less at the end | "
        "just learned |",
        "|---|---|---|---|---|---|",
    ]
    for course in courses:
        lines.append(
            f"| {course.name} | {_percent(course.final)} | {100 * course.average.mean():.1f} % | "
            f"{_points(course.forgetting)} | {_points(course.backward)} | {course.learned:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def numbers(stream: Stream, courses: Sequence[Course]) -> bytes:
    """All that was measured, as JSON."""
    tree = {
        "labels": list(stream.labels),
        "spans": list(stream.spans),
        "courses": {one.name: np.round(100 * one.accuracy, 3).tolist() for one in courses},
    }
    return (json.dumps(tree, indent=1) + "\n").encode()


def draw(stream: Stream, courses: Sequence[Course], path: Path, title: str) -> None:
    """The average over all steps so far, and the first step's accuracy, after each step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    average, first = figure.subplots(1, 2, sharey=True)
    places = np.arange(1, stream.steps + 1)
    for course in courses:
        style = {"color": COLOURS.get(course.name, "#444444"), "marker": "o", "markersize": 4, "label": course.name}
        average.plot(places, 100 * course.average, **style)
        first.plot(places, 100 * course.accuracy[:, 0], **style)
    average.set_title("all steps so far", fontsize=10)
    first.set_title("the first step's texts", fontsize=10)
    average.set_ylabel("top-1 accuracy, %")
    for axis in (average, first):
        axis.set_xlabel("learned up to step")
        axis.set_xticks(places)
        axis.grid(axis="y", color="#d5d8dd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    first.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} % ({estimate.low:.1f} to {estimate.high:.1f})"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"
