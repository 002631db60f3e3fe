"""The items of a release: in the order that ranking reads them, and with an approximate index where they are many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.errors import ExportError, VerificationError
from export.report import Check, VerificationReport
from export.settings import TopkSettings
from export.texts import held_out_texts
from serving.steps.catalogue import Catalogue
from serving.steps.grouped_scan import Rows, Vectors
from serving.steps.item_index import CODES, STEPS, IndexHeader, IndexSpace, ItemIndex
from serving.steps.ranking import MAX_TOP_K, Ranked, Ranker, log_softmax
from training.run import Run

APPROXIMATE_FROM = 100_000
"""Items from which `index: auto` builds an index: exact ranking is the faster below (docs/topk.md)."""
ITEMS_PER_CELL = 200
TRAINING_ITEMS_PER_CELL = 64
ITERATIONS = 8
LARGEST_CODE = 126
"""Of -128 to 127; rounding must not go beyond."""
SLICE = 65_536
"""Items whose vectors are copied at a time."""
PROBES = tuple(size for power in range(3, 21) for size in (2**power, 3 * 2 ** (power - 1)))
RECALL_AT = 10
MAX_REQUESTS = 1_000


@dataclass(frozen=True)
class Requests:
    """Held-out requests, which an index is tuned and verified on.

    Attributes:
        instruction: float32 [rows, H].
        logits: float32 [rows, K].
        histories: item ids of each row, newest first.
    """

    instruction: Vectors
    logits: Vectors
    histories: list[list[bytes]]

    def every_other(self, first: int) -> Requests:
        """One half of the rows: `first`, `first + 2` and so on."""
        return Requests(self.instruction[first::2], self.logits[first::2], self.histories[first::2])

    @classmethod
    def of(cls, instruction: Vectors, logits: Vectors, catalogue: Catalogue) -> Requests:
        """Pair instructions with histories: of every three rows one has none, the others one to ten random items."""
        chooser = np.random.default_rng(0)
        histories = []
        for row in range(len(instruction)):
            rows = chooser.integers(0, len(catalogue.prior), size=chooser.integers(1, 11))
            histories.append([catalogue.item_ids[int(item)] for item in rows] if row % 3 else [])
        return cls(instruction, logits, histories)


def held_out_requests(run: Run, catalogue: Catalogue) -> Requests:
    """A run's held-out instructions through its encoder and head, with and without histories.

    Args:
        run: the run.
        catalogue: in the dataset's order.
    """
    instruction = run.load_model().embed(held_out_texts(run, MAX_REQUESTS))
    weight, bias = run.head()
    return Requests.of(instruction, (instruction @ weight.T + bias).astype(np.float32), catalogue)


def wants_index(items: int, settings: TopkSettings) -> bool:
    """Whether a catalogue of so many items gets an approximate index."""
    return settings.index == "approximate" or (settings.index == "auto" and items >= APPROXIMATE_FROM)


def write_items(
    catalogue: Catalogue, folder: Path, settings: TopkSettings, requests: Requests | None
) -> VerificationReport | None:
    """Write a catalogue into the folder of a step, its items of one label together, and its index if it wants one.

    Args:
        catalogue: in the dataset's order.
        folder: exists already.
        settings: whether there is an index, and what it must keep.
        requests: to tune and verify an index on; needed only where there is one.

    Returns:
        What was measured of the index; None without one.

    Raises:
        ExportError: FAISS is not installed, or there are no requests.
        VerificationError: the index finds fewer of the best items than the settings ask for.
    """
    if not wants_index(len(catalogue.prior), settings):
        catalogue.reordered(np.argsort(catalogue.label_index, kind="stable")).write(folder)
        return None
    if requests is None or len(requests.instruction) < 2:
        raise ExportError("an approximate index needs instructions to be verified on, and this run has none")
    codes, steps, order = build_index(catalogue)
    ordered = catalogue.reordered(order)
    index = ItemIndex(codes, steps, ordered, probes=PROBES[0], slack=0.0)
    _tune(index, ordered, requests.every_other(0), settings.recall)
    report = verify_index(index, ordered, requests.every_other(1), settings.recall)
    if not report.passed:
        raise VerificationError(report)
    ordered.write(folder)
    faiss = _faiss()
    with (folder / CODES).open("wb") as stream:  # by itself FAISS raises no OSError, and passes over a failing close
        faiss.write_index(codes, faiss.PyCallbackIOWriter(stream.write))
    np.save(folder / STEPS, steps)
    size = (folder / CODES).stat().st_size
    header = IndexHeader(items=len(order), width=codes.d, probes=index.probes, slack=index.slack, codes_bytes=size)
    header.write(folder)
    return report


def build_index(catalogue: Catalogue) -> tuple[Any, Vectors, Rows]:
    """Divide each label's items into cells and encode them as differences from the cell's centre.

    A code is a signed byte a dimension, in steps of the dimension's own size: FAISS reads such codes without a table of
    ranges, 1.6 times as fast, because the steps are put into the query.

    Returns:
        The `faiss.IndexIVFScalarQuantizer`, its steps, float32 [width], and the catalogue rows in the order of its
        cells.

    Raises:
        ExportError: FAISS is not installed.
    """
    faiss = _faiss()
    space = IndexSpace(catalogue)
    order, sizes, centres = _cells(faiss, catalogue, space)
    cell_of = np.repeat(np.arange(len(sizes)), sizes)
    parts = [slice(start, start + SLICE) for start in range(0, len(order), SLICE)]
    farthest = np.zeros(space.width, np.float32)
    for part in parts:
        residual = space.items(catalogue, order[part]) - centres[cell_of[part]]
        np.maximum(farthest, np.abs(residual).max(axis=0), out=farthest)
    steps = np.where(farthest > 0, farthest / LARGEST_CODE, 1).astype(np.float32)
    coarse = faiss.IndexFlatIP(space.width)
    coarse.add(centres / steps)
    kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
    codes = faiss.IndexIVFScalarQuantizer(coarse, space.width, len(centres), kind, faiss.METRIC_INNER_PRODUCT, True)
    codes.own_fields = True
    coarse.this.disown()
    codes.is_trained = True
    for part in tqdm(parts, desc="encoding items", unit="slice", disable=None):
        # FAISS cuts the fraction off; half a step more rounds.
        vectors = space.items(catalogue, order[part]) / steps + np.float32(0.5)
        cells = np.ascontiguousarray(cell_of[part])
        codes.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(cells))
    return codes, steps, order


def _cells(faiss: Any, catalogue: Catalogue, space: IndexSpace) -> tuple[Rows, Rows, Vectors]:
    """The catalogue rows cell by cell, the cells' sizes, and their centres; no cell is empty, none has two labels."""
    by_label = np.argsort(catalogue.label_index, kind="stable")
    starts = np.searchsorted(catalogue.label_index[by_label], np.arange(len(catalogue.labels) + 1)).tolist()
    order, sizes, centres = [], [], []
    for label in tqdm(range(len(catalogue.labels)), desc="dividing items into cells", unit="label", disable=None):
        rows = by_label[starts[label] : starts[label + 1]]
        if not len(rows):
            continue
        vectors = space.items(catalogue, rows)
        cell_of, found = _divide(faiss, vectors)
        order.append(rows[np.argsort(cell_of, kind="stable")])
        held = np.bincount(cell_of, minlength=len(found))
        sizes.append(held[held > 0])
        centres.append(found[held > 0])
    return np.concatenate(order), np.concatenate(sizes), np.concatenate(centres)


def _divide(faiss: Any, vectors: Vectors) -> tuple[Rows, Vectors]:
    """One label's cells by k-means: the cell of each vector, and the centres."""
    count = round(len(vectors) / ITEMS_PER_CELL)
    if count < 2:
        return np.zeros(len(vectors), np.int64), vectors.mean(axis=0, keepdims=True)
    clustering = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=ITERATIONS,
        seed=1,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINING_ITEMS_PER_CELL,
    )
    clustering.train(vectors)
    _, cell_of = clustering.index.search(vectors, 1)
    return cell_of[:, 0], clustering.centroids


def _tune(index: ItemIndex, catalogue: Catalogue, requests: Requests, target: float) -> None:
    """Set the slack that next to all of the best 10 need, then the fewest probes that keep the target.

    Both keep a little more than they must, so that other requests keep it too. Where even all cells within the slack do
    not suffice for a request for many items, it grows.
    """
    scan, ranker = Ranker(catalogue), Ranker(catalogue, index)
    exact = _rank(scan, requests, MAX_TOP_K)
    label_term = catalogue.score_weights.beta * log_softmax(requests.logits)
    history = scan.history_vectors(requests.histories)
    missing = index.shortfall(requests.instruction, label_term, history, exact.items)
    index.slack = float(np.quantile(missing[:, :RECALL_AT], 1 - 0.1 * (1 - target)))
    while True:
        for probes in PROBES:
            index.probes = probes
            found = recalls(ranker, requests, exact)
            if all(found[k] >= bar + (1 - bar) / 4 for k, bar in _bars(target).items()):
                return
            if probes >= index.cells:
                break
        if index.slack >= missing.max():
            return
        index.slack = min(1.25 * index.slack + 1e-6, float(missing.max()))


def _bars(target: float) -> dict[int, float]:
    """The least recall by k: a request for many items may miss three times as large a share of them."""
    return {RECALL_AT: target, MAX_TOP_K: 1 - 3 * (1 - target)}


def verify_index(index: ItemIndex, catalogue: Catalogue, requests: Requests, target: float) -> VerificationReport:
    """Hold the index against exact ranking, under the full score.

    Args:
        index: its probes are set.
        catalogue: in the order of its cells.
        requests: that the probes were not chosen on.
        target: the least mean share of the best 10; of the best 100, three times as many may be missing.
    """
    found = recalls(Ranker(catalogue, index), requests, _rank(Ranker(catalogue), requests, MAX_TOP_K))
    checks = tuple(
        Check.at_least(f"recall of the best {k} by the full score", found[k], bar) for k, bar in _bars(target).items()
    )
    graph = f"{CODES} (at most {index.probes} of {index.cells} cells a request)"
    return VerificationReport(graph=graph, texts=len(requests.instruction), shapes=(), checks=checks)


def recalls(ranker: Ranker, requests: Requests, exact: Ranked) -> dict[int, float]:
    """The recall of requests for 10 items and for 100."""
    rows = len(requests.instruction)
    return {k: recall(_rank(ranker, requests, k), exact.part(0, rows, k)) for k in (RECALL_AT, MAX_TOP_K)}


def recall(found: Ranked, exact: Ranked) -> float:
    """The mean share of the exact answer that was found; an item as good as the exact answer's last counts."""
    return float((found.score >= exact.score[:, -1:]).mean())


def _rank(ranker: Ranker, requests: Requests, k: int) -> Ranked:
    parts = []
    for start in range(0, len(requests.instruction), 16):
        rows = slice(start, start + 16)
        histories = requests.histories[rows]
        history, excluded = ranker.history_vectors(histories), ranker.excluded_rows(histories)
        parts.append(ranker.rank(requests.instruction[rows], requests.logits[rows], history, k, excluded))
    return Ranked(
        np.concatenate([one.items for one in parts]),
        np.concatenate([one.score for one in parts]),
        np.concatenate([one.reason for one in parts]),
    )


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415 - only catalogues with an approximate index need it
    except ImportError:
        raise ExportError(
            "an approximate index needs FAISS: pip install faiss-cpu, or set serving.topk.index: exact"
        ) from None
    return faiss
