"""What ranking costs, in a process that holds nothing else: `python -m export.ranking_cost FOLDER`.

FOLDER holds what `export.item_scale` wrote: a step's catalogue, `requests.npz` and `histories.json`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import numpy as np

from serving.steps.grouped_scan import Vectors
from serving.steps.ranking import Ranker

ROUNDS = 2
"""The first brings the pages in; the last one counts."""


def measure(folder: Path) -> dict[str, float]:
    """Rank the requests one by one, then eight at a time: ms a row of this thread's processor time, and MB."""
    saved = np.load(folder / "requests.npz")
    histories = [[one.encode() for one in own] for own in json.loads((folder / "histories.json").read_text())]
    began = time.perf_counter()
    ranker = Ranker.open(folder)
    figures = {"load_s": time.perf_counter() - began}
    for batch, name in ((1, "one"), (8, "of_eight")):
        for _ in range(ROUNDS):
            parts = [slice(start, start + batch) for start in range(0, len(histories) - batch + 1, batch)]
            spent = [_time(ranker, saved["instruction"][one], saved["logits"][one], histories[one]) for one in parts]
        figures |= {f"{name}_p50": float(np.median(spent)), f"{name}_p99": float(np.percentile(spent, 99))}
    memory = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return figures | {f"{name.lower()}_mb": int(memory[name].split()[0]) / 1e3 for name in ("Rss", "Pss")}


def _time(ranker: Ranker, instruction: Vectors, logits: Vectors, histories: list[list[bytes]]) -> float:
    began = time.thread_time()
    history, excluded = ranker.history_vectors(histories), ranker.excluded_rows(histories)
    ranker.rank(instruction, logits, history, 10, excluded)
    return (time.thread_time() - began) * 1e3 / len(histories)


if __name__ == "__main__":
    click.echo(json.dumps(measure(Path(sys.argv[1]))))
