"""The plots of a report, drawn from its tree with matplotlib, without any global state of it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Tree = Mapping[str, Any]

DPI = 130
TUNED, OTHER, BEST, LINE = "#1f5fa8", "#8a8f98", "#c8752d", "#d5d8dd"
LONGEST_NAME = 24
STYLE: Any = {
    "text.parse_math": False,  # a label such as "$5 to $10" is no formula
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a8",
    "figure.titlesize": 11,
    "figure.constrained_layout.use": True,
}


def draw_plots(tree: Tree, folder: Path) -> dict[str, str]:
    """Draw what the tree has into `folder`; the file's name by section. A section that is absent has no plot."""
    drawn: dict[str, str] = {}
    plots: dict[str, Callable[[Tree], Figure | None]] = {
        "label_task": _label_task,
        "confusion": _confusion,
        "ranking": _ranking,
        "calibration": _calibration,
        "robustness": _robustness,
        "learning_curve": _learning_curve,
    }
    with _quiet_style():
        for name, draw in plots.items():
            figure = draw(tree)
            if figure is not None:
                figure.savefig(folder / f"{name}.png", dpi=DPI)
                drawn[name] = f"{name}.png"
    return drawn


@contextmanager
def _quiet_style() -> Iterator[None]:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the tables beside the plots hold the text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def shorten(name: str) -> str:
    """A label's name as it fits beside an axis: one line, at most 24 characters."""
    words = " ".join(name.split())
    return words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME - 1].rstrip()}…"


def _title(tree: Tree, what: str, split: str, count: int) -> str:
    weak = ", weak labels" if tree["dataset"]["weak_labels"] else ""
    return f"{what}: {count:,} {split} instruction{'' if count == 1 else 's'}{weak}"


def _last(splits: Tree) -> tuple[str, Any]:
    return list(splits.items())[-1]


def _dots(
    title: str, names: Sequence[str], panels: Mapping[str, Sequence[Any]], colours: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    """One row a name, one panel a metric: the value as a dot and in figures, its interval as a line."""
    figure = Figure(figsize=(2.2 + 2.5 * len(panels), 1.3 + 0.36 * len(names)))
    figure.suptitle(title)
    axes: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)))
    places = np.arange(len(names))[::-1]
    for axis, (metric, estimates) in zip(axes, panels.items(), strict=True):
        for place, estimate, colour in zip(places, estimates, colours, strict=True):
            if estimate is None:
                continue
            axis.plot([estimate["low"], estimate["high"]], [place, place], color=colour, linewidth=2.2, alpha=0.55)
            axis.plot(estimate["value"], place, "o", color=colour, markersize=5.5)
            axis.annotate(
                f"{estimate['value']:.3f}",
                (estimate["value"], place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.2},
            )
        axis.set_xlabel(metric)
        axis.set_yticks(places, names)
        axis.set_ylim(-0.6, len(names) - 0.25)
        axis.margins(x=0.14)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="x", color=LINE, linewidth=0.6)
        axis.tick_params(axis="y", length=0)
    return figure, axes


def _compared(title: str, part: Tree, metrics: Mapping[str, str]) -> Figure:
    systems, best = part["systems"], (part["difference"] or {}).get("baseline")
    colours = [TUNED if name == "tuned" else BEST if name == best else OTHER for name in systems]
    panels = {shown: [system[metric] for system in systems.values()] for metric, shown in metrics.items()}
    return _dots(title, [system["title"] for system in systems.values()], panels, colours)[0]


def _label_task(tree: Tree) -> Figure | None:
    if tree["label_task"] is None:
        return None
    split, part = _last(tree["label_task"]["splits"])
    metrics = {"top1_accuracy": "top-1 accuracy", "top3_accuracy": "top-3 accuracy", "macro_f1": "macro-F1"}
    return _compared(_title(tree, "Labels", split, part["instructions"]), part, metrics)


def _ranking(tree: Tree) -> Figure | None:
    if tree["ranking"] is None:
        return None
    split, part = _last(tree["ranking"]["splits"])
    metrics = {"ndcg@10": "NDCG@10", "precision@10": "precision@10", "recall@10": "recall@10", "mrr": "MRR"}
    return _compared(_title(tree, "Ranking the catalogue", split, part["instructions"]), part, metrics)


def _confusion(tree: Tree) -> Figure | None:
    part = (tree["labels"] or {}).get("confusion")
    if not part or not part["worst_labels"]:
        return None
    names = [shorten(name) for name in part["worst_labels"]]
    columns = [*names, "any other"] if any(part["others"]) else names
    counts = np.column_stack([part["matrix"], part["others"]])[:, : len(columns)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(3.2 + 0.52 * len(names), 2.4 + 0.42 * len(names)))
    figure.suptitle(_title(tree, "Labels in most errors", tree["labels"]["split"], part["instructions"]))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts > 0):
        right = row == column
        colour = "white" if shares[row, column] > 0.55 else "black" if right else "#b3261e"
        weight = "normal" if right else "bold"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontweight=weight)
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    for edge in range(1, max(counts.shape)):
        axis.axvline(edge - 0.5, color=LINE, linewidth=0.6)
        axis.axhline(edge - 0.5, color=LINE, linewidth=0.6)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("read as")
    axis.set_ylabel("label")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _calibration(tree: Tree) -> Figure | None:
    part = tree["calibration"]
    if part is None:
        return None
    figure = Figure(figsize=(5.4, 5.4))
    figure.suptitle(_title(tree, "Reliability", part["split"], part["as_tuned"]["instructions"]))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle="--", label="perfectly calibrated")
    shown = [("as tuned", part["as_tuned"], TUNED)]
    if part["rescaled"] is not None:
        shown.append((f"temperature {part['rescaled']['temperature']:.2f}", part["rescaled"], BEST))
    for name, own, colour in shown:
        error = own["expected_calibration_error"]["value"]
        confidences, accuracies = [b["confidence"] for b in own["bins"]], [b["accuracy"] for b in own["bins"]]
        sizes = [12 + 140 * b["instructions"] / own["instructions"] for b in own["bins"]]
        upper.scatter(confidences, accuracies, s=sizes, color=colour, alpha=0.8, label=f"{name}: ECE {error:.3f}")
    bins = part["as_tuned"]["bins"]
    lower.bar(
        [b["from"] for b in bins],
        [b["instructions"] for b in bins],
        width=[0.9 * (b["to"] - b["from"]) for b in bins],
        align="edge",
        color=TUNED,
    )
    upper.set_ylabel("accuracy")
    upper.set_ylim(-0.03, 1.05)
    upper.set_xlim(0, 1.03)
    upper.grid(color=LINE, linewidth=0.6)
    legend = upper.legend(loc="lower right", frameon=False)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([28])
    lower.set_ylabel("instructions\n(as tuned)")
    lower.set_xlabel("confidence in the first label")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


def _robustness(tree: Tree) -> Figure | None:
    part = tree["robustness"]
    if part is None:
        return None
    rows = [{"title": "as written", **part["unchanged"]}, *part["perturbations"]]
    panels = {"top-1 accuracy": [row["accuracy"] for row in rows]}
    if part["instructions_ranked"]:
        panels[f"NDCG@10, {part['instructions_ranked']:,} of them"] = [row["ndcg@10"] for row in rows]
    colours = [OTHER] + [TUNED] * len(part["perturbations"])
    title = _title(tree, "Robustness", part["split"], part["instructions"])
    figure, axes = _dots(title, [row["title"] for row in rows], panels, colours)
    for axis, estimates in zip(axes, panels.values(), strict=True):
        axis.axvline(estimates[0]["value"], color=OTHER, linewidth=1, linestyle="--", zorder=0)
    return figure


def _learning_curve(tree: Tree) -> Figure | None:
    part = tree["learning_curve"]
    if part is None:
        return None
    figure = Figure(figsize=(6, 4))
    figure.suptitle(_title(tree, "Learning curve", part["split"], part["instructions"]))
    axis = figure.subplots()
    base = "the run's encoder (frozen)" if part["frozen"] else "base encoder"
    own = f"{'distilled' if tree['run']['encoder_method'] == 'distilled' else 'tuned'} encoder"
    names = {"base": (f"{base} + logistic regression", BEST), "tuned": (f"{own} + logistic regression", TUNED)}
    for curve, points in part["curves"].items():
        name, colour = names[curve]
        deviations = [point["standard_deviation"] or 0.0 for point in points]
        means = [point["mean"] for point in points]
        axis.errorbar(
            range(len(points)), means, deviations, color=colour, marker="o", markersize=5, capsize=3, label=name
        )
    run = tree["label_task"]["splits"][part["split"]]["systems"]["tuned"]["top1_accuracy"]["value"]
    axis.axhline(run, color=TUNED, linewidth=1, linestyle="--", label="the run's own head")
    points = part["curves"]["base"]
    axis.set_xticks(
        range(len(points)), [f"{'all' if p['shots'] is None else p['shots']}\n({p['examples']:,})" for p in points]
    )
    axis.set_xlabel("training instructions a label (examples in all)")
    axis.set_ylabel("top-1 accuracy, mean ± standard deviation")
    axis.grid(axis="y", color=LINE, linewidth=0.6)
    axis.legend(loc="lower right", frameon=False)
    return figure
