"""An approximate index over a catalogue's items, for catalogues that are too large to scan.

The items of each label are divided into cells by k-means. A request looks into the cells whose centre has the best
score, label term included; their items' 8-bit codes give the candidates, which `ranking` settles by the exact score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .catalogue import Catalogue
from .grouped_scan import GroupedScan, Rows, Vectors
from .limits import MAX_TOP_K

HEADER = "item_index.json"
CODES = "item_index.faiss"
STEPS = "item_index.steps.npy"

LANES = 16
"""FAISS scans a width that is no multiple of this much more slowly; such a width is padded with zeros."""
LARGEST_FACTOR = 127
SPARE_CANDIDATES = 30
"""Settled beyond twice `k`; by then the codes' rounding loses nothing (docs/topk.md)."""
TIES = 8
"""Looked for beyond what a row wants, to see whether more tie with the last one: mostly one search is enough."""


@dataclass(frozen=True)
class IndexHeader:
    """What `item_index.json` says.

    Attributes:
        items: how many items the index holds.
        width: of the vectors in it, padding included.
        probes: how many cells each row of a request looks into, at most.
        slack: how much less than the best centre's a cell's score may be for it to be looked into.
        codes_bytes: size of the file of codes.
    """

    items: int
    width: int
    probes: int
    slack: float
    codes_bytes: int

    def write(self, folder: Path) -> None:
        """Write it into the folder of the index."""
        (folder / HEADER).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class IndexSpace:
    """The vectors whose inner product is the score without its label term.

    An item is `[e, δ·prior / s]` for a query `[αh + γ·history, s]`, or, where histories have vectors of their own,
    `[α·e, γ·v, δ·prior] / s` for `[h, history, 1] · s`. The scale s changes no score; it lets distances between items
    mean what they mean for scores. A prior that is the same for all items is left out.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        """Take the layout that a catalogue needs."""
        self._weights = weights = catalogue.score_weights
        self._own_history = catalogue.history_vectors is not None
        self._has_prior = weights.delta != 0 and bool((catalogue.prior != catalogue.prior[:1]).any())
        self._scale = max(abs(weights.alpha), abs(weights.gamma)) or 1.0
        used = catalogue.item_vectors.shape[1] + self._has_prior
        used += catalogue.history_side.shape[1] if self._own_history else 0
        self.width = -(-used // LANES) * LANES

    def items(self, catalogue: Catalogue, rows: Rows) -> Vectors:
        """Some of the catalogue's items, float32 [rows, width]."""
        weights, vectors = self._weights, catalogue.item_vectors[rows]
        parts = [vectors]
        if self._own_history:
            parts = [
                vectors * (weights.alpha / self._scale),
                catalogue.history_side[rows] * (weights.gamma / self._scale),
            ]
        if self._has_prior:
            parts.append(catalogue.prior[rows, None] * (weights.delta / self._scale))
        return self._padded(parts)

    def queries(self, instruction: Vectors, history: Vectors) -> Vectors:
        """The rows of a batch, float32 [rows, width]."""
        weights = self._weights
        if self._own_history:
            parts = [instruction * self._scale, history * self._scale]
        else:
            parts = [weights.alpha * instruction + weights.gamma * history]
        if self._has_prior:
            parts.append(np.full((len(instruction), 1), self._scale, np.float32))
        return self._padded(parts)

    def _padded(self, parts: Sequence[Vectors]) -> Vectors:
        joined = np.zeros((len(parts[0]), self.width), np.float32)
        start = 0
        for part in parts:
            joined[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return joined


class ItemIndex:
    """Finds the items that are likely the best; the catalogue's rows lie in the order of the index's cells."""

    def __init__(self, codes: Any, steps: Vectors, catalogue: Catalogue, probes: int, slack: float) -> None:
        """Put codes and catalogue together; `open` is the usual door.

        Args:
            codes: a `faiss.IndexIVF` by inner product with residuals in units of `steps`; its lists, one after the
                other, hold the rows of the catalogue in order, those of one label together.
            steps: float32 [width], what one unit of a code is worth in each dimension.
            catalogue: what was indexed.
            probes: how many cells each row of a request looks into, at most.
            slack: how much less than the best centre's a cell's score may be for it to be looked into. A request that
                wants more items than such cells hold looks into others too.

        Raises:
            ValueError: codes and catalogue do not fit each other.
        """
        self._codes = codes
        self._space = IndexSpace(catalogue)
        sizes = np.array([codes.invlists.list_size(cell) for cell in range(codes.nlist)])
        width = self._space.width
        if codes.ntotal != len(catalogue.prior) or sizes.sum() != codes.ntotal or not codes.d == len(steps) == width:
            raise ValueError(
                f"{CODES} holds {codes.ntotal} items of width {codes.d}, the catalogue {len(catalogue.prior)} of width "
                f"{width}; export the release again"
            )
        label_of_cell = catalogue.label_index[np.cumsum(sizes) - sizes]
        if (np.diff(catalogue.label_index) < 0).any() or not sizes.all():
            raise ValueError(f"{CODES} and the catalogue are not in the same order; export the release again")
        self._sizes = sizes
        starts = np.searchsorted(label_of_cell, np.arange(len(catalogue.labels) + 1))
        self._steps = steps
        centres = codes.quantizer.reconstruct_n(0, codes.nlist) * steps
        self._centre_vectors, self._label_of_cell = centres, label_of_cell
        self._centres = GroupedScan([centres], np.zeros(len(centres), np.float32), starts)
        self.probes, self.slack = probes, slack

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self._sizes)

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a folder holds an index, or a part of one."""
        return any((folder / name).exists() for name in (HEADER, CODES, STEPS))

    @classmethod
    def open(cls, folder: Path, catalogue: Catalogue) -> ItemIndex:
        """Map an index that export built; instances share its pages.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: a file is missing, cut short or of another catalogue.
        """
        try:
            import faiss  # noqa: PLC0415 - a release without an index does without it
        except ImportError:
            raise ImportError("this release has an approximate index: install faiss-cpu where it is served") from None
        faiss.omp_set_num_threads(1)
        try:
            header = IndexHeader(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
            size = (folder / CODES).stat().st_size
            if size != header.codes_bytes:
                raise ValueError(f"{size} bytes instead of {header.codes_bytes}")
            steps = np.load(folder / STEPS, allow_pickle=False)
            with (folder / CODES).open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            codes: Any = faiss.read_index(str(folder / CODES), faiss.IO_FLAG_MMAP)
            # Reading ahead would start threads for every request.
            lists: Any = faiss.downcast_InvertedLists(codes.invlists)
            lists.prefetch_nthread = 0
        except (OSError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"the item index cannot be read ({error}); export the release again") from error
        return cls(codes, steps, catalogue, header.probes, header.slack)

    def candidates(
        self,
        instruction: Vectors,
        label_term: Vectors,
        history: Vectors,
        k: Rows,
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> list[Rows]:
        """Each row's items that are likely among its best k: at least k of them, in no order.

        What a row gets does not depend on its neighbours.

        Args:
            instruction: float32 [rows, H].
            label_term: float32 [rows, K].
            history: float32 [rows, D].
            k: int64 [rows], how many items each row wants; the catalogue has as many.
            excluded: catalogue rows to leave out of each answer; at least k others must be there.
        """
        queries = self._space.queries(instruction, history)
        left_out = [np.asarray(own, np.int64) for own in excluded or [()] * len(queries)]
        leaving = np.array([len(own) for own in left_out])
        # By the largest `top_k`, so that many items are looked for in all cells that may hold them.
        wanted = (np.maximum(k, MAX_TOP_K) + leaving).clip(max=self._codes.ntotal)
        cells, scores = self._cells(queries, label_term, wanted)
        found = self._best_by_codes(queries, cells, scores, 2 * k + leaving + SPARE_CANDIDATES)
        return [own[~np.isin(own, out)] if len(out) else own for own, out in zip(found, left_out, strict=True)]

    def _best_by_codes(self, queries: Vectors, cells: Rows, scores: Vectors, counts: Rows) -> list[Rows]:
        """As many items as each row wants, the best by their codes, and all that tie with the last of them.

        Equal items have equal codes, and which of them FAISS keeps depends on what else it meets.
        """
        whole, unit = self._whole(queries)
        scores = scores / unit
        counts = counts.clip(max=self._codes.ntotal)
        best: list[Rows] = [counts[:0]] * len(counts)
        self._codes.nprobe = cells.shape[1]
        rows, width = np.arange(len(counts)), int(counts.max()) + TIES
        while len(rows):
            width = min(width, self._codes.ntotal)
            values, items = self._codes.search_preassigned(whole[rows], width, cells[rows], scores[rows])
            last = np.take_along_axis(values, counts[rows, None] - 1, axis=1)
            kept = (items >= 0) & (values >= last)
            for row, own, keep in zip(rows.tolist(), items, kept, strict=True):
                best[row] = own[keep]
            rows = rows[kept[:, -1]] if width < self._codes.ntotal else rows[:0]
            width *= 2
        return best

    def _whole(self, queries: Vectors) -> tuple[Vectors, Vectors]:
        """Queries against the codes, as whole numbers up to 127, and what one is worth in each row, float32 [rows, 1].

        FAISS multiplies such codes by whole bytes only; it cuts off the rest.
        """
        scaled = queries * self._steps
        unit = np.abs(scaled).max(axis=1, keepdims=True) / np.float32(LARGEST_FACTOR)
        unit[unit == 0] = 1
        return np.rint(scaled / unit), unit

    def _cells(self, queries: Vectors, label_term: Vectors, wanted: Rows) -> tuple[Rows, Vectors]:
        """Each row's best cells, which hold as many items as it wants, and their scores; -1 where it needs no more."""
        best = self._best_cells(queries, label_term, 1, self.probes)
        need = 4
        while lacking := [row for row, (own, _) in enumerate(best) if self._sizes[own].sum() < wanted[row]]:
            more = self._best_cells(queries[lacking], label_term[lacking], need, max(self.probes, need))
            for row, found in zip(lacking, more, strict=True):
                best[row] = found
            need = min(2 * need, self.cells)
        cells = np.full((len(best), max(len(own) for own, _ in best)), -1, np.int64)
        scores = np.zeros(cells.shape, np.float32)
        for row, (own, values) in enumerate(best):
            cells[row, : len(own)], scores[row, : len(own)] = own, values
        return cells, scores

    def _best_cells(self, queries: Vectors, label_term: Vectors, need: int, most: int) -> list[tuple[Rows, Vectors]]:
        """Each row's cells, best first: those within the slack of the `need`-th best, but not more than `most`."""
        found = self._centres.best([queries], label_term, min(need, self.cells), slack=self.slack)
        return [_first(*own, most) for own in found]

    def shortfall(self, instruction: Vectors, label_term: Vectors, history: Vectors, items: Rows) -> Vectors:
        """How much less than the best centre's the scores of some items' cells are: what `slack` must allow for.

        Args:
            instruction: float32 [rows, H].
            label_term: float32 [rows, K].
            history: float32 [rows, D].
            items: catalogue rows, [rows, k].

        Returns:
            float32 [rows, k].
        """
        queries = self._space.queries(instruction, history)
        best = [scores.max() for _, scores in self._centres.best([queries], label_term, 1)]
        cells = np.searchsorted(np.cumsum(self._sizes), items, side="right")
        own = np.einsum("rd,rkd->rk", queries, self._centre_vectors[cells])
        own += np.take_along_axis(label_term, self._label_of_cell[cells].astype(np.int64), axis=1)
        return np.asarray(np.array(best)[:, None] - own, dtype=np.float32)


def _first(cells: Rows, scores: Vectors, need: int) -> tuple[Rows, Vectors]:
    order = np.argsort(-scores, kind="stable")[:need]
    return cells[order], scores[order]
