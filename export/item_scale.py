"""What ranking costs against the number of items: `python -m export.item_scale --run var/runs/… --items 10000,1000000`.

Items beyond the run's own are made around them; requests are the run's held-out instructions. Behind docs/topk.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from export.item_index import held_out_requests, wants_index, write_items
from export.settings import TopkSettings
from serving.steps.catalogue import Catalogue, ScoreWeights, StringTable
from serving.steps.grouped_scan import Vectors
from training.run import Run

SPREAD = 0.5
"""How far an item made around another lies from it, in differences of two items of its label."""
NOISE = 0.2
"""The length of the white noise added to it."""
HISTORY_SHARE = 0.25
"""γ as a share of α where the run has learned none, so that histories count here."""


def scaled_catalogue(run: Run, count: int) -> Catalogue:
    """A catalogue of `count` items in the manner of the run's: a sample of its own, or a mixture around them."""
    chooser = np.random.default_rng(0)
    items, vectors = run.catalogue(), run.item_vectors()
    row_of = {label: row for row, label in enumerate(run.labels)}
    labels = np.array([row_of[item.label] for item in items], np.int32)
    base = np.concatenate([chooser.permutation(len(items)) for _ in range(-(-count // len(items)))])[:count]
    made = vectors[base] if count <= len(items) else _around(vectors, labels, base, chooser)
    weights = run.score_weights
    gamma = weights.gamma or HISTORY_SHARE * weights.alpha
    return Catalogue(
        release="1",
        item_vectors=made,
        label_index=labels[base],
        prior=np.array([item.prior for item in items], np.float32)[base],
        item_ids=StringTable.of(f"item-{row}" for row in range(count)),
        titles=StringTable.of(items[row].title for row in base.tolist()),
        labels=run.labels,
        score_weights=ScoreWeights(**{**weights.model_dump(), "gamma": gamma}),
    )


def _around(vectors: Vectors, labels: Any, base: Any, chooser: np.random.Generator) -> Vectors:
    """Normalised vectors: each base vector, a difference of two of its label's, and white noise."""
    by_label = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    made = np.empty((len(base), vectors.shape[1]), np.float32)
    for start in range(0, len(base), 50_000):
        rows = base[start : start + 50_000]
        label = labels[rows]
        one, other = (
            vectors[by_label[starts[label] + (chooser.random(len(rows)) * sizes[label]).astype(np.int64)]]
            for _ in range(2)
        )
        noise = chooser.standard_normal((len(rows), vectors.shape[1]), dtype=np.float32)
        mixed = vectors[rows] + SPREAD / np.sqrt(2) * (one - other) + NOISE / np.sqrt(vectors.shape[1]) * noise
        made[start : start + len(rows)] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return made


def study(run: Run, count: int, index: str, scratch: Path) -> dict[str, Any]:
    """Build and measure one catalogue, the latter in a process of its own."""
    catalogue = scaled_catalogue(run, count)
    requests = held_out_requests(run, catalogue)
    settings = TopkSettings.model_validate({"index": index})
    began, began_cpu = time.perf_counter(), time.process_time()
    report = write_items(catalogue, scratch, settings, requests if wants_index(count, settings) else None)
    built = {"build_s": time.perf_counter() - began, "build_cpu_s": time.process_time() - began_cpu}
    np.savez(scratch / "requests.npz", instruction=requests.instruction, logits=requests.logits)
    (scratch / "histories.json").write_text(json.dumps([[one.decode() for one in own] for own in requests.histories]))
    del catalogue
    measured = subprocess.run(  # noqa: S603 - a module of this room
        [sys.executable, "-m", "export.ranking_cost", str(scratch)], check=True, capture_output=True
    )
    cost: dict[str, Any] = json.loads(measured.stdout)
    checks: dict[str, Any] = report.measured() if report else {}
    return {"items": count, "index": index} | built | checks | cost


def draw(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the cost of a row against the number of items, for each kind of index, alone and in a batch of eight."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - of the extra `evaluation`, and only for the picture

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for kind, colour in (("exact", "tab:orange"), ("approximate", "tab:blue")):
        rows = sorted((one for one in measured if one["index"] == kind), key=lambda one: one["items"])
        for name, label, style in (
            ("one_p99", "alone, p99", ":"),
            ("one_p50", "alone, p50", "-"),
            ("of_eight_p50", "of eight, p50", "--"),
        ):
            values = [one[name] for one in rows]
            axes.plot([one["items"] for one in rows], values, style, marker=".", color=colour, label=f"{kind}, {label}")
    axes.set(xscale="log", yscale="log", xlabel="items", ylabel="ms of one core for a row, k = 10")
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@click.command()
@click.option("--run", "run_folder", required=True, type=click.Path(path_type=Path), help="A run's folder.")
@click.option("--items", default="10000,44446,100000,200000,500000,1000000", help="Catalogue sizes.")
@click.option("--index", "kinds", default="exact,approximate", help="What to measure.")
@click.option("--plot", type=click.Path(path_type=Path), help="Where to draw cost against size, as PNG.")
def main(run_folder: Path, items: str, kinds: str, plot: Path | None) -> None:
    """Print one JSON line for each size and kind of index."""
    measured = []
    run = Run.open(run_folder)
    for count in (int(one) for one in items.split(",")):
        for kind in kinds.split(","):
            with tempfile.TemporaryDirectory() as scratch:
                measured.append(study(run, count, kind, Path(scratch)))
            click.echo(json.dumps(measured[-1]))
    if plot:
        draw(measured, plot)


if __name__ == "__main__":
    main()
