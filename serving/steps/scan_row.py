"""What a scan knows about one row of a batch: scores, and for members that it only glanced at, bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Glance = tuple[Rows, Vectors, Vectors]
"""Members, about what their scores are, and their groups' terms."""

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
        self._glances: list[tuple[Rows, Vectors, Vectors, np.float32]] = []
        self._looked_at = 0

    def add(self, members: Rows, scores: Vectors) -> None:
        """Take the scores of some members."""
        if len(self.excluded):
            scores[np.isin(members, self.excluded)] = -np.inf
        self._blocks.append((members, scores))

    def glance(self, members: Rows, estimate: Vectors, most: Vectors, term: np.float32) -> None:
        """Take what some members' scores are about and at most, and their group's term."""
        if len(self.excluded):
            out = np.isin(members, self.excluded)
            estimate[out] = most[out] = -np.inf
        self._glances.append((members, estimate, most, term))

    def nearest(self, count: int, floor: float = -np.inf) -> Glance:
        """The members with the best estimates of each group that came since the last call, at most `count` of each.

        Groups whose estimates all lie below the floor are left out.
        """
        new = [one for one in self._glances[self._looked_at :] if one[1].max() > floor]
        self._looked_at = len(self._glances)
        chosen = []
        for members, estimate, most, term in new:
            best = np.argpartition(estimate, -count)[-count:] if len(members) > count else np.arange(len(members))
            if len(self.excluded):
                best = best[np.isfinite(estimate[best])]
            most[best] = -np.inf
            chosen.append((members[best], estimate[best], np.full(len(best), term, np.float32)))
        return _joined(chosen)

    def promising(self, floor: float) -> Glance:
        """The members whose scores may reach the floor, of those that have none yet."""
        chosen = []
        for members, estimate, most, term in self._glances:
            own = np.flatnonzero(most >= floor)
            if len(own):
                chosen.append((members[own], estimate[own], np.full(len(own), term, np.float32)))
        return _joined(chosen)

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


def _joined(glances: Sequence[Glance]) -> Glance:
    if len(glances) < 2:
        return glances[0] if glances else NOTHING
    members, estimates, terms = zip(*glances, strict=True)
    return np.concatenate(members), np.concatenate(estimates), np.concatenate(terms)
