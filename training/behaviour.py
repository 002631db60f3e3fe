"""Behaviour vectors: items that the same people chose lie close together. Cold items get theirs from their text."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from training.event_log import DAY, EventLog
from training.history_config import HistoryConfig

Vectors = npt.NDArray[np.float32]

DENSE = 200  # people or items up to which the decomposition is exact
TEXT_RIDGE = 1.0  # of the regression from text vectors, whose squared lengths are 1


def behaviour_vectors(log: EventLog, time: float, text_vectors: Vectors, settings: HistoryConfig) -> Vectors:
    """A vector of each item, float32 [N, D], whose inner products approximate shrunk, faded co-occurrence.

    With `A` people by items, an event weighing `0.5 ** (age / half_life_days)` and an item's column divided by
    `sqrt(its squared length + shrinkage)`, the vectors are the leading factors of `AᵀA` (truncated singular value
    decomposition). An item without an event before `time` gets what a ridge regression reads from its text vector
    `text_vectors` [N, H]. All are zero where there is no event. D is `settings.dimensions`; columns that the events
    cannot fill are zero.
    """
    log = log.before(time)
    vectors = np.zeros((log.item_count, settings.dimensions), dtype=np.float32)
    if not len(log):
        return vectors
    rows, columns = np.unique(log.items, return_inverse=True)
    known = _factors(log, time, columns, len(rows), settings)
    vectors[rows, : known.shape[1]] = known
    cold = np.ones(log.item_count, dtype=bool)
    cold[rows] = False
    if cold.any():
        vectors[cold, : known.shape[1]] = text_vectors[cold] @ _regression(text_vectors[rows], known)
    return vectors


def _factors(
    log: EventLog, time: float, columns: npt.NDArray[np.int64], items: int, settings: HistoryConfig
) -> Vectors:
    fade = 0.5 ** ((time - log.times) / DAY / settings.half_life_days)
    # Only people who have an event: those who come later must not change how many factors there are.
    present, people = np.unique(log.people, return_inverse=True)
    # Repeated events of a person and an item count once, as the newest; CSR would add them up.
    pairs = people * items + columns
    _, newest = np.unique(pairs[::-1], return_index=True)
    kept = len(pairs) - 1 - newest
    matrix = csr_matrix((fade[kept], (people[kept], columns[kept])), shape=(len(present), items))
    lengths = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    scaled = (matrix @ diags(1 / np.sqrt(np.maximum(lengths + settings.shrinkage, 1e-12)))).tocsr()
    strengths, factors = _decompose(scaled, settings.dimensions)
    return np.asarray(factors.T * strengths, dtype=np.float32)


def _decompose(matrix: csr_matrix, rank: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The largest `rank` singular values, descending, and their right vectors [rank, items]; the same at each call."""
    smaller = min(matrix.shape)
    if smaller <= max(DENSE, rank):  # ARPACK is for large ones
        _, strengths, factors = np.linalg.svd(matrix.toarray(), full_matrices=False)
        return strengths[:rank], factors[:rank]
    start = np.random.default_rng(0).normal(size=smaller)
    _, strengths, factors = svds(matrix, k=rank, v0=start)
    order = np.argsort(-strengths, kind="stable")
    return strengths[order], factors[order]


def _regression(text: Vectors, targets: Vectors) -> Vectors:
    gram = text.T @ text + TEXT_RIDGE * np.eye(text.shape[1], dtype=np.float32)
    return np.asarray(np.linalg.solve(gram, text.T @ targets), dtype=np.float32)
