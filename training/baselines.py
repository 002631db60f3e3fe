"""What a history's ranking is held against: popularity and item-kNN, from the events before a moment alone."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from training.event_log import DAY, EventLog

Scores = npt.NDArray[np.float32]


def popularity(log: EventLog, time: float, days: float | None = None) -> Scores:
    """How many events each item has in the last `days` before `time`, or ever, float32 [N]."""
    start = -np.inf if days is None else time - days * DAY
    return log.before(time).counts(start).astype(np.float32)


class ItemNeighbours:
    """Item-kNN over all neighbours: `count(i, j) / (sqrt(count(i) count(j)) + shrinkage)`, summed over a history.

    A person counts once for an item (Sarwar et al. 2001, with the shrinkage of Bell and Koren 2007).
    """

    def __init__(self, log: EventLog, time: float, shrinkage: float) -> None:
        """Read the events before `time`."""
        log = log.before(time)
        shape = (len(log.person_ids), log.item_count)
        pairs = np.unique(np.stack([log.people, log.items]), axis=1)
        self._chosen = csr_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=shape)
        self._counts = np.asarray(self._chosen.sum(axis=0)).ravel()
        self._shrinkage = shrinkage

    def scores(self, histories: Sequence[Sequence[int]]) -> Scores:
        """The score of every item for each history of catalogue rows, float32 [b, N]; zero for an empty one."""
        scores = np.zeros((len(histories), len(self._counts)), dtype=np.float32)
        rows = sorted({row for history in histories for row in history if self._counts[row]})
        if not rows:
            return scores
        similar = (self._chosen[:, rows].T @ self._chosen).tocoo()
        own = np.asarray(rows)[similar.row]
        values = similar.data / (np.sqrt(self._counts[own] * self._counts[similar.col]) + self._shrinkage)
        values[own == similar.col] = 0.0
        table = csr_matrix((values, (similar.row, similar.col)), shape=similar.shape)
        place = {row: number for number, row in enumerate(rows)}
        for number, history in enumerate(histories):
            known = [place[row] for row in history if row in place]
            if known:
                scores[number] = np.asarray(table[known].sum(axis=0)).ravel()
        return scores
