"""The best members of label groups by inner product, exactly, without a look at groups that cannot hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .narrow_vectors import WIDTHS, Divided, NarrowVectors

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

ROUNDING = 1e-5
"""How far, relative to the terms' size, a fast product may be from the sum that counts."""

SMALL_GROUP = 64
"""Members below which a matrix product of its own costs more than to gather the vectors."""

SPARE = 12
"""Scored beyond twice the need, so that the floor is next to the true one."""

NARROW_FROM = 4_096
"""Vectors of all groups together from which it pays to look at a few dimensions first."""


Promise = tuple[Rows, Vectors, Vectors]
"""Members, about what their scores are, and their groups' terms."""

NOTHING: Promise = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))


class GroupedScan:
    """Scores `Σ_p ⟨query_p, vector_p⟩ + own term + the group's term`, one group after the other.

    A group reaches at most `Σ_p |query_p| · longest vector_p + greatest own term + its term` (Cauchy and Schwarz);
    where that is below what is found already, its vectors are not read. The label term alone settles most requests: a
    label that the head finds improbable would need a better product than there can be.
    """

    def __init__(self, parts: Sequence[Vectors], own: Vectors, starts: Rows) -> None:
        """Measure the groups; this reads every vector once.

        Args:
            parts: float32 [N, D_p] each, rows of one group together.
            own: float32 [N], each member's own term.
            starts: [G + 1], group g is the rows from `starts[g]` to `starts[g + 1]`; a group may be empty.

        Raises:
            ValueError: a vector or a term is not finite.
        """
        self._parts = parts
        self._own = own if own.any() else None
        self._starts = starts.tolist()
        self._sizes = np.diff(starts)
        self._members = np.arange(len(own))
        lengths = [_norms(part) for part in parts]
        if not all(np.isfinite(one).all() for one in (*lengths, own)):
            raise ValueError("an item's vector or prior is not finite; export the release again")
        # Rounding must not put a bound below what it bounds.
        self._longest = [np.maximum(_group_maximum(one, starts), 0) * np.float32(1 + ROUNDING) for one in lengths]
        self._own_reach = _group_maximum(own, starts)
        self._own_size = float(np.abs(own).max(initial=0))
        wide = len(own) >= NARROW_FROM and all(part.shape[1] >= 2 * sum(WIDTHS) for part in parts)
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
        rows = [_Row(out, float(scale)) for out, scale in zip(excluded or [()] * len(order), size, strict=True)]
        first = [int(np.searchsorted(held[at], need + len(row.excluded))) + 1 for at, row in enumerate(rows)]
        divided = [narrow.divide(query) for narrow, query in zip(self._narrow, queries, strict=False)]
        self._score(rows, [order[at, :stop] for at, stop in enumerate(first)], queries, divided, group_term)
        for at, row in enumerate(rows):
            self._settle(row, at, queries, row.nearest(2 * need + SPARE))
        floors = [row.floor(need) - slack for row in rows]
        later = [order[at, stop:][reach[at, order[at, stop:]] >= floors[at]] for at, stop in enumerate(first)]
        self._score(rows, later, queries, divided, group_term)
        for at, row in enumerate(rows):
            self._settle(row, at, queries, self._still_promising(row.promising(floors[at]), at, divided, floors[at]))
        return [row.best(need, slack) for row in rows]

    def _product_reach(self, queries: Sequence[Vectors]) -> Vectors:
        """How much the products can be at most in each group, float32 [rows, G]."""
        reach = np.zeros((len(queries[0]), len(self._sizes)), np.float32)
        for query, longest in zip(queries, self._longest, strict=True):
            reach += np.sqrt(np.einsum("rd,rd->r", query, query))[:, None] * longest
        return reach

    def _score(
        self,
        rows: Sequence[_Row],
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
        rows: Sequence[_Row],
        askers: list[int],
        span: slice,
        divided: Sequence[Divided],
        terms: Vectors,
    ) -> None:
        """Estimate the scores of a large group's members, and how much they can be at most."""
        near = np.repeat(terms[:, None], span.stop - span.start, axis=1)
        spread = np.zeros_like(near)
        for narrow, own in zip(self._narrow, divided, strict=True):
            near += own.parts[0][askers] @ narrow.vectors.parts[0][span].T
            spread += own.rests[0][askers][:, None] * narrow.vectors.rests[0][span]
        if self._own is not None:
            near += self._own[span]
        for at, estimate, most, term in zip(askers, near, near + spread, terms.tolist(), strict=True):
            rows[at].promise(self._members[span], estimate, most, term)

    def _still_promising(self, found: Promise, at: int, divided: Sequence[Divided], floor: float) -> Promise:
        """Those of some members whose scores may reach the floor after a look at more dimensions."""
        members, near, terms = found
        spread = np.zeros_like(near)
        for narrow, own in zip(self._narrow, divided, strict=True):
            near += narrow.vectors.parts[1][members] @ own.parts[1][at]
            spread += own.rests[1][at] * narrow.vectors.rests[1][members]
        kept = near + spread >= floor
        return members[kept], near[kept], terms[kept]

    def _settle(self, row: _Row, at: int, queries: Sequence[Vectors], chosen: Promise) -> None:
        """Score some members of the groups that a row has glanced at."""
        members, _, terms = chosen
        if len(members):
            row.add(members, self._scores(queries, [at], members, terms[None])[0])

    def _scores(self, queries: Sequence[Vectors], askers: list[int], members: Rows | slice, terms: Vectors) -> Vectors:
        """The scores of some members for some rows, float32 [askers, members]."""
        total = queries[0][askers] @ self._parts[0][members].T + terms
        for query, part in zip(queries[1:], self._parts[1:], strict=True):
            if query[askers].any():
                total += query[askers] @ part[members].T
        if self._own is not None:
            total += self._own[members]
        return np.asarray(total, dtype=np.float32)


class _Row:
    """What one row has scored so far, and what it has only glanced at."""

    def __init__(self, excluded: Sequence[int], size: float) -> None:
        self.excluded = np.asarray(excluded, dtype=np.int64)
        self._size = size
        self._blocks: list[tuple[Rows, Vectors]] = []
        self._promises: list[tuple[Rows, Vectors, Vectors, float]] = []

    def add(self, members: Rows, scores: Vectors) -> None:
        """Take the scores of some members."""
        if len(self.excluded):
            scores[np.isin(members, self.excluded)] = -np.inf
        self._blocks.append((members, scores))

    def promise(self, members: Rows, estimate: Vectors, most: Vectors, term: float) -> None:
        """Take what some members' scores are about and at most, and their group's term."""
        if len(self.excluded):
            out = np.isin(members, self.excluded)
            estimate[out] = most[out] = -np.inf
        self._promises.append((members, estimate, most, term))

    def nearest(self, count: int) -> Promise:
        """The members of each group with the best estimates, at most `count` of each."""
        chosen = []
        for members, estimate, most, _ in self._promises:
            best = np.argpartition(estimate, -count)[-count:] if len(members) > count else np.arange(len(members))
            best = best[np.isfinite(estimate[best])]
            most[best] = -np.inf
            chosen.append(best)
        return self._chosen(chosen)

    def promising(self, floor: float) -> Promise:
        """The members whose scores may reach the floor, of those that have none yet."""
        return self._chosen([np.flatnonzero(most >= floor) for _, _, most, _ in self._promises])

    def _chosen(self, places: Sequence[Rows]) -> Promise:
        if not places:
            return NOTHING
        columns = [
            (members[own], estimate[own], np.full(len(own), term, np.float32))
            for own, (members, estimate, _, term) in zip(places, self._promises, strict=True)
        ]
        return columns[0] if len(columns) == 1 else tuple(map(np.concatenate, zip(*columns, strict=True)))

    def floor(self, need: int) -> float:
        """A little less than the `need`-th best score: what is below it cannot be among the best."""
        scores = [scores for _, scores in self._blocks]
        joined = scores[0] if len(scores) == 1 else np.concatenate(scores)
        worst = float(np.partition(joined, len(joined) - need)[len(joined) - need])
        return worst - ROUNDING * max(self._size, abs(worst))

    def best(self, need: int, slack: float) -> tuple[Rows, Vectors]:
        """All members that reach the floor less the slack, and their scores.

        A matrix product does not round every column alike, so that equal items would not stay in their order.
        """
        floor = self.floor(need) - slack
        kept = [np.flatnonzero(scores >= floor) for _, scores in self._blocks]
        best = [(members[own], scores[own]) for own, (members, scores) in zip(kept, self._blocks, strict=True)]
        return np.concatenate([one for one, _ in best]), np.concatenate([one for _, one in best])


def _norms(vectors: Vectors) -> Vectors:
    """The length of each vector, in slices: a temporary of the matrix's own size is never made."""
    lengths = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536]
        lengths[start : start + len(part)] = np.sqrt(np.einsum("nd,nd->n", part, part))
    return lengths


def _group_maximum(values: Vectors, starts: Rows) -> Vectors:
    """The greatest value of each group, -inf for an empty one; NaN stays NaN."""
    greatest = np.full(len(starts) - 1, -np.inf, np.float32)
    filled = np.flatnonzero(np.diff(starts))
    if len(filled):
        greatest[filled] = np.maximum.reduceat(values, starts[filled])
    return greatest
