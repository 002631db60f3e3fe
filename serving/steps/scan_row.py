"""What a scan knows about one row of a batch: scores, and for members that it only glanced at, bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Glance = tuple[Rows, Vectors, Vectors]
"""Members, about what their scores are, and their groups' terms: one for each, or one for all."""

ROUNDING = 1e-5
"""How far, relative to the terms' size, a fast product may be from the sum that counts."""

NOTHING: Glance = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))


class ScanRow:
    """What one row has scored so far, and what it has only glanced at."""

    def __init__(self, excluded: Sequence[int], size: float) -> None:
        """Begin.

        Args:
            excluded: the members that are left out.
            size: how large the terms of a score can be, for rounding.
        """
        self.excluded = np.asarray(excluded, dtype=np.int64)
        self._size = size
        self._blocks: list[tuple[Rows, Vectors]] = []
        self._glances: list[tuple[Rows, Vectors, Vectors, float]] = []
        self._looked_at = 0

    def add(self, members: Rows, scores: Vectors) -> None:
        """Take the scores of some members."""
        if len(self.excluded):
            scores[np.isin(members, self.excluded)] = -np.inf
        self._blocks.append((members, scores))

    def glance(self, members: Rows, estimate: Vectors, most: Vectors, term: float) -> None:
        """Take what a group's members' scores are about and at most, both without the group's term, and that term."""
        if len(self.excluded):
            out = np.isin(members, self.excluded)
            estimate[out] = most[out] = -np.inf
        self._glances.append((members, estimate, most, term))

    def nearest(self, count: int, floor: float = -np.inf) -> Glance:
        """The members with the best estimates of each group that came since the last call, at most `count` of each.

        Groups whose estimates all lie below the floor are left out.
        """
        chosen = []
        for members, estimate, most, term in self._glances[self._looked_at :]:
            if estimate.max() + term <= floor:
                continue
            best = np.argpartition(estimate, -count)[-count:] if len(members) > count else np.arange(len(members))
            if len(self.excluded):
                best = best[np.isfinite(estimate[best])]
            most[best] = -np.inf
            chosen.append((members.take(best), estimate.take(best), term))
        self._looked_at = len(self._glances)
        return _joined(chosen)

    def promising(self, floor: float) -> Glance:
        """The members whose scores may reach the floor, of those that have none yet."""
        chosen = []
        for members, estimate, most, term in self._glances:
            own = (most >= floor - term).nonzero()[0]
            if len(own):
                chosen.append((members.take(own), estimate.take(own), term))
        return _joined(chosen)

    def floor(self, need: int) -> float:
        """A little less than the `need`-th best score: what is below it cannot be among the best."""
        _, scores = self._scored()
        worst = float(np.partition(scores, len(scores) - need)[len(scores) - need])
        return worst - ROUNDING * max(self._size, abs(worst))

    def best(self, need: int, slack: float) -> tuple[Rows, Vectors]:
        """All members that reach the floor less the slack, and their scores.

        A matrix product does not round every column alike, so that equal items would not stay in their order.
        """
        members, scores = self._scored()
        kept = (scores >= self.floor(need) - slack).nonzero()[0]
        return members.take(kept), scores.take(kept)

    def _scored(self) -> tuple[Rows, Vectors]:
        if len(self._blocks) > 1:
            members, scores = zip(*self._blocks, strict=True)
            self._blocks = [(np.concatenate(members), np.concatenate(scores))]
        return self._blocks[0]


def _joined(groups: Sequence[tuple[Rows, Vectors, float]]) -> Glance:
    """The members of some groups, their estimates with the groups' terms, and these terms."""
    if not groups:
        return NOTHING
    if len(groups) == 1:
        members, estimate, term = groups[0]
        return members, estimate + np.float32(term), np.array([term], np.float32)
    columns = list(zip(*groups, strict=True))
    terms = np.repeat(np.array(columns[2], np.float32), [len(own) for own in columns[0]])
    return np.concatenate(columns[0]), np.concatenate(columns[1]) + terms, terms
