"""The best members of label groups by inner product, exactly, without a look at groups that cannot hold them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from .narrow_vectors import SLICE, WIDTHS, Divided, NarrowVectors, lengths
from .scan_row import ROUNDING, Glance, Rows, ScanRow, Vectors

__all__ = ["SMALL_GROUP", "GroupedScan", "Rows", "Vectors"]

SMALL_GROUP = 64
"""Members below which a matrix product of its own costs more than to gather the vectors."""

SMALL_PRODUCT = 1_000_000
"""Multiplications of one call up to which OpenBLAS does without copies."""

SPARE = 12
"""Scored beyond twice the need, so that the floor is next to the true one."""

NARROW_FROM = 4_096
"""Vectors of all groups together from which it pays to look at a few dimensions first."""


class GroupedScan:
    """Scores `Σ_p ⟨query_p, vector_p⟩ + own term + the group's term`, one group after the other.

    A group reaches at most `Σ_p |query_p| · longest vector_p + greatest own term + its term` (Cauchy and Schwarz);
    where that is below what is found already, its vectors are not read. The label term alone settles most requests: a
    label that the head finds improbable would need a better product than there can be.
    """

    def __init__(self, parts: Sequence[Vectors], own: Vectors, starts: Rows, *, narrow: bool = False) -> None:
        """Measure the groups; this reads every vector once.

        Args:
            parts: float32 [N, D_p] each, rows of one group together.
            own: float32 [N], each member's own term.
            starts: [G + 1], group g is the rows from `starts[g]` to `starts[g + 1]`; a group may be empty.
            narrow: whether to look at a few dimensions first, where there are enough members and dimensions for it.

        Raises:
            ValueError: a vector or a term is not finite.
        """
        self._parts = parts
        self._own = own if own.any() else None
        self._starts = starts.tolist()
        self._sizes = np.diff(starts)
        self._members = np.arange(len(own))
        norms = [_norms(part) for part in parts]
        if not all(np.isfinite(one).all() for one in (*norms, own)):
            raise ValueError("an item's vector or prior is not finite; export the release again")
        # Rounding must not put a bound below what it bounds.
        self._longest = [np.maximum(_group_maximum(one, starts), 0) * np.float32(1 + ROUNDING) for one in norms]
        self._balls = [_balls(part, starts) for part in parts]
        self._own_reach = _group_maximum(own, starts)
        self._own_size = float(np.abs(own).max(initial=0))
        wide = narrow and len(own) >= NARROW_FROM and all(part.shape[1] >= 2 * sum(WIDTHS) for part in parts)
        self._narrow = [NarrowVectors(part) for part in parts] if wide else []

    def best(
        self,
        queries: Sequence[Vectors],
        group_term: Vectors,
        need: int,
        excluded: Sequence[Sequence[int]] | None = None,
        slack: float = 0.0,
    ) -> list[tuple[Rows, Vectors]]:
        """The members that may be among each row's best, once rounding is taken out.

        Args:
            queries: float32 [rows, D_p] for each part.
            group_term: float32 [rows, G].
            need: how many members each row wants.
            excluded: members that each row leaves out; at least `need` others must be there.
            slack: how much less than the `need`-th best a score may be.

        Returns:
            For each row its members and their scores, at least `need` of them, in no order.

        Raises:
            FloatingPointError: a query or a group term is not finite.
        """
        product_reach = self._product_reach(queries)
        reach = product_reach + self._own_reach + group_term
        if not (np.isfinite(group_term).all() and np.isfinite(product_reach).all()):
            raise FloatingPointError("a score is not finite")
        size = np.maximum(1, product_reach.max(axis=1) + self._own_size)
        order = np.argsort(-reach, axis=1)
        held = np.cumsum(self._sizes[order], axis=1)
        rows = [ScanRow(out, float(scale)) for out, scale in zip(excluded or [()] * len(order), size, strict=True)]
        wanted = np.array([need + len(row.excluded) for row in rows])
        first = ((held < wanted[:, None]).sum(axis=1) + 1).tolist()
        divided = [narrow.divide(query) for narrow, query in zip(self._narrow, queries, strict=False)]
        self._score(rows, [order[at, :stop] for at, stop in enumerate(first)], queries, divided, group_term)
        for at, row in enumerate(rows):
            self._settle(row, at, queries, row.nearest(2 * need + SPARE))
        floors = [row.floor(need) - slack for row in rows]
        later = [order[at, stop:][reach[at, order[at, stop:]] >= floors[at]] for at, stop in enumerate(first)]
        self._score(rows, later, queries, divided, group_term)
        for at, row in enumerate(rows):
            if self._settle(row, at, queries, row.nearest(2 * need + SPARE, floors[at])):
                floors[at] = row.floor(need) - slack
            self._settle(row, at, queries, self._still_promising(row.promising(floors[at]), at, divided, floors[at]))
        return [row.best(need, slack) for row in rows]

    def _product_reach(self, queries: Sequence[Vectors]) -> Vectors:
        """How much the products can be at most in each group, float32 [rows, G]."""
        reach = np.zeros((len(queries[0]), len(self._sizes)), np.float32)
        for query, longest, (means, radii) in zip(queries, self._longest, self._balls, strict=True):
            size = lengths(query)[:, None]
            reach += np.minimum(size * longest, query @ means.T + size * radii)
        return reach

    def _score(
        self,
        rows: Sequence[ScanRow],
        groups: Sequence[Rows],
        queries: Sequence[Vectors],
        divided: Sequence[Divided],
        group_term: Vectors,
    ) -> None:
        """Score the groups that each row asks for, large ones by their heads alone.

        Rows that ask for the same large group share its matrix product; a row's small groups are gathered into one.
        """
        asking: dict[int, list[int]] = {}
        for at, own in enumerate(groups):
            small = own[self._sizes[own] < SMALL_GROUP]
            if len(small) > 1:
                own = own[self._sizes[own] >= SMALL_GROUP]  # noqa: PLW2901 - the rest of it
                members = np.concatenate([self._members[self._starts[one] : self._starts[one + 1]] for one in small])
                terms = np.repeat(group_term[at, small], self._sizes[small])[None]
                rows[at].add(members, self._scores(queries, [at], members, terms)[0])
            for group in own.tolist():
                asking.setdefault(group, []).append(at)
        for group, askers in asking.items():
            span = slice(self._starts[group], self._starts[group + 1])
            if self._narrow:
                self._glance(rows, askers, span, divided, group_term[askers, group])
                continue
            scores = self._scores(queries, askers, span, group_term[askers, group][:, None])
            for at, values in zip(askers, scores, strict=True):
                rows[at].add(self._members[span], values)

    def _glance(
        self,
        rows: Sequence[ScanRow],
        askers: list[int],
        span: slice,
        divided: Sequence[Divided],
        terms: Vectors,
    ) -> None:
        """Estimate the scores of a large group's members, and how much they can be at most."""
        nears: list[Vectors] = []
        rests: list[Vectors] = []
        for narrow, own in zip(self._narrow, divided, strict=True):
            nears.append(products(own.head[askers], narrow.vectors.head[span]))
            rests.append(own.head_rest[askers, None] * narrow.vectors.head_rest[span])
        if self._own is not None:
            nears.append(self._own[span])
        near: Vectors = functools.reduce(np.add, nears)
        members = self._members[span]
        most: Vectors = functools.reduce(np.add, [near, *rests])
        for at, estimate, reach, term in zip(askers, near, most, terms.tolist(), strict=True):
            rows[at].glance(members, estimate, reach, term)

    def _still_promising(self, found: Glance, at: int, divided: Sequence[Divided], floor: float) -> Glance:
        """Those of some members whose scores may reach the floor after a look at more dimensions."""
        members, most, terms = found
        if not len(members):
            return found
        for narrow, own in zip(self._narrow, divided, strict=True):
            most = most + narrow.vectors.more.take(members, axis=0) @ own.more[at]
            most += own.more_rest[at] * narrow.vectors.more_rest.take(members)
        kept = (most >= floor).nonzero()[0]
        return members.take(kept), most.take(kept), terms if len(terms) == 1 else terms.take(kept)

    def _settle(self, row: ScanRow, at: int, queries: Sequence[Vectors], chosen: Glance) -> bool:
        """Score some members of the groups that a row has glanced at; whether there were any."""
        members, _, terms = chosen
        if len(members):
            row.add(members, self._scores(queries, [at], members, terms[None])[0])
        return len(members) > 0

    def _scores(self, queries: Sequence[Vectors], askers: list[int], members: Rows | slice, terms: Vectors) -> Vectors:
        """The scores of some members for some rows, float32 [askers, members]."""
        total = terms
        for number, (query, part) in enumerate(zip(queries, self._parts, strict=True)):
            if number == 0 or query[askers].any():
                chosen = part[members] if isinstance(members, slice) else part.take(members, axis=0)
                total = total + products(query[askers], chosen)
        if self._own is not None:
            total = total + self._own[members]
        return np.asarray(total, dtype=np.float32)


def products(queries: Vectors, vectors: Vectors) -> Vectors:
    """All inner products, float32 [queries, vectors].

    In slices that OpenBLAS multiplies as they lie (its small-matrix kernels); larger ones it copies first, which costs
    more than the product where queries are few.
    """
    if len(queries) == 1:
        return np.asarray((vectors @ queries[0])[None], dtype=np.float32)
    columns = np.ascontiguousarray(queries.T)
    found = np.empty((len(vectors), len(queries)), np.float32)
    step = max(1, SMALL_PRODUCT // columns.size)
    for start in range(0, len(vectors), step):
        np.matmul(vectors[start : start + step], columns, out=found[start : start + step])
    return np.ascontiguousarray(found.T)


def _balls(vectors: Vectors, starts: Rows) -> tuple[Vectors, Vectors]:
    """The mean of each group, float32 [G, D], and how far from it the group's vectors are at most, float32 [G]."""
    means = np.zeros((len(starts) - 1, vectors.shape[1]), np.float32)
    radii = np.zeros(len(means), np.float32)
    for group, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        for part in _slices(start, stop):
            means[group] += vectors[part].sum(axis=0) / np.float32(stop - start)
        for part in _slices(start, stop):
            radii[group] = max(radii[group], lengths(vectors[part] - means[group]).max())
    # Rounding must not put a bound below what it bounds.
    return means, radii + ROUNDING * (radii + lengths(means))


def _slices(start: int, stop: int) -> list[slice]:
    """Slices of what lies between, so that a temporary of the matrix's own size is never made."""
    return [slice(at, min(at + SLICE, stop)) for at in range(start, stop, SLICE)]


def _norms(vectors: Vectors) -> Vectors:
    """The length of each vector, in slices: a temporary of the matrix's own size is never made."""
    return np.concatenate([lengths(vectors[part]) for part in _slices(0, len(vectors))] or [np.empty(0, np.float32)])


def _group_maximum(values: Vectors, starts: Rows) -> Vectors:
    """The greatest value of each group, -inf for an empty one; NaN stays NaN."""
    greatest = np.full(len(starts) - 1, -np.inf, np.float32)
    filled = np.flatnonzero(np.diff(starts))
    if len(filled):
        greatest[filled] = np.maximum.reduceat(values, starts[filled])
    return greatest
