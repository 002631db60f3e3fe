"""Fits the four weights of the score, and the decay of the history, on held-in relevance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.score import CatalogueSide, ScoreWeights, Vectors

DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHUNK = 64  # examples scored at once
MAX_SCORES = 20_000_000  # example-item pairs that a fit holds, 80 MB a term; more examples are drawn from, not used up
MAX_WEIGHT = 1_000.0  # keeps a fit finite where the data could be told apart without error
RIDGE = 1e-5  # pulls a weight that changes next to nothing towards 0

Floats = npt.NDArray[np.float64]
Cells = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class RankingExamples:
    """Examples to rank the whole catalogue for.

    `h` [B, H] and `log_probabilities` [B, K] are zero in the rows without an instruction; `histories` hold catalogue
    rows, newest first, empty for none; `grades` maps catalogue rows to grades; `weights` [B] are the examples' weights.
    `excluded` are the rows that may not be answered. `states` are the catalogue as it was known at each example's time;
    None, or no list, stands for the catalogue as it is.
    """

    h: Vectors
    log_probabilities: Vectors
    histories: Sequence[Sequence[int]]
    grades: Sequence[dict[int, float]]
    weights: Vectors
    excluded: Sequence[Sequence[int]] | None = None
    states: Sequence[CatalogueSide | None] | None = None

    def __len__(self) -> int:
        """The number of examples B."""
        return len(self.h)

    def take(self, rows: Sequence[int]) -> "RankingExamples":
        """The examples at `rows`."""
        index = list(rows)
        return RankingExamples(
            self.h[index],
            self.log_probabilities[index],
            [self.histories[row] for row in index],
            [self.grades[row] for row in index],
            self.weights[index],
            None if self.excluded is None else [self.excluded[row] for row in index],
            None if self.states is None else [self.states[row] for row in index],
        )

    def chunks(self, catalogue: CatalogueSide, decay: float, size: int = CHUNK) -> "Iterator[tuple[slice, Vectors]]":
        """Slices of the examples with their unweighted terms, float32 [4, b, N]; those of a slice share their state."""
        start = 0
        while start < len(self):
            state = self._state(start)
            stop = start + 1
            while stop < min(start + size, len(self)) and self._state(stop) is state:
                stop += 1
            part = slice(start, stop)
            known = catalogue if state is None else state
            history = np.stack([known.history_vector(rows, decay) for rows in self.histories[part]])
            yield part, known.features(self.h[part], self.log_probabilities[part], history)
            start = stop

    def _state(self, row: int) -> CatalogueSide | None:
        return None if self.states is None else self.states[row]

    def excluded_cells(self, part: slice) -> Cells:
        """Rows and columns of the scores [b, N] of a slice that belong to excluded items."""
        if self.excluded is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        own = self.excluded[part]
        rows = np.repeat(np.arange(len(own)), [len(columns) for columns in own])
        return rows, np.array([column for columns in own for column in columns], dtype=np.int64)


@dataclass(frozen=True)
class Fit:
    """The fitted weights, their loss (nats an example) and how many examples were used."""

    weights: ScoreWeights
    loss: float
    examples: int


def fit_score_weights(
    examples: RankingExamples,
    catalogue: CatalogueSide,
    *,
    history: bool,
    prior: bool,
    seed: int,
    instructions: bool = True,
) -> Fit:
    """Minimise the listwise cross-entropy over the full catalogue, all weights at least 0.

    The loss of an example is `-sum_i t_i log softmax(s)_i`, with t the normalised grades (ListNet's top-one form, Cao
    et al. 2007). It is convex in the weights, so the fit has one answer. Without `history` gamma is 0, without `prior`
    delta is 0, without `instructions` alpha and beta are. Excluded items are no candidates.
    """
    limit = max(1, MAX_SCORES // len(catalogue))
    if len(examples) > limit:
        drawn = np.random.default_rng(seed).permutation(len(examples))[:limit]
        examples = examples.take([int(row) for row in sorted(drawn)])
    active = np.array([instructions, instructions, history, prior])
    best: tuple[float, float, Floats] | None = None
    for decay in tqdm(DECAYS if history else (1.0,), desc="score weights", unit="fit", disable=None):
        loss, weights = _fit(examples, catalogue, active, decay)
        if best is None or loss < best[0]:
            best = (loss, decay, weights)
    assert best is not None  # noqa: S101 - at least one decay is tried
    loss, decay, weights = best
    alpha, beta, gamma, delta = (float(weight) for weight in weights)
    fitted = ScoreWeights(alpha=alpha, beta=beta, gamma=gamma, delta=delta, history_decay=decay)
    return Fit(fitted, loss, len(examples))


def _fit(
    examples: RankingExamples, catalogue: CatalogueSide, active: npt.NDArray[np.bool_], decay: float
) -> tuple[float, Floats]:
    from scipy.optimize import minimize  # noqa: PLC0415 - takes longer to load than all else here

    # A prior may be a count in the thousands; the optimiser wants terms of like size.
    states = {id(state): state for state in [catalogue, *(examples.states or [])] if state is not None}
    largest = max(float(state.priors.max(initial=0.0)) for state in states.values())
    scale = np.array([1.0, 1.0, 1.0, max(largest, 1e-30)])[active]
    chunks = []
    for part, features in examples.chunks(catalogue, decay):
        terms: Vectors = (features[active] / scale[:, None, None]).astype(np.float32)
        targets, importance = _targets(terms, examples.grades[part]), examples.weights[part].astype(np.float64)
        chunks.append((terms, targets, importance, examples.excluded_cells(part)))
    total = sum(float(importance.sum()) for _, _, importance, _ in chunks)

    def objective(weights: Floats) -> tuple[float, Floats]:
        loss, gradient = RIDGE * float(weights @ weights), 2 * RIDGE * weights
        for terms, targets, importance, excluded in chunks:
            losses, gradients = _listwise(weights, terms, targets, excluded)
            loss += float(importance @ losses) / total
            gradient = gradient + importance @ gradients / total
        return loss, gradient

    # A term that is the same for all items changes nothing: its weight is held at 0. The ridge is too weak to pull it
    # there against the rounding of the loss.
    ranks = np.any([np.ptp(terms, axis=2).any(axis=1) for terms, *_ in chunks], axis=0).astype(np.float64)
    bounds = [(0.0, MAX_WEIGHT * one) for one in ranks]
    found = minimize(objective, ranks, jac=True, method="L-BFGS-B", bounds=bounds)
    weights = np.zeros(len(active))
    weights[active] = found.x / scale
    return float(found.fun), weights


def _targets(terms: Vectors, grades: Sequence[dict[int, float]]) -> Floats:
    """The expectation of each term under the normalised grades, [b, F]: all that the target adds to the loss."""
    expected = np.empty((len(grades), len(terms)))
    for row, own in enumerate(grades):
        share = np.array(list(own.values()), dtype=np.float64)
        expected[row] = terms[:, row, list(own)].astype(np.float64) @ (share / share.sum())
    return expected


def _listwise(weights: Floats, terms: Vectors, targets: Floats, excluded: Cells) -> tuple[Floats, Floats]:
    """The losses [b] and their gradients [b, F] of terms [F, b, N]."""
    scores = np.tensordot(weights.astype(np.float32), terms, axes=1)
    scores[excluded] = -np.inf
    top = scores.max(axis=1, keepdims=True)
    exponentials = np.exp(scores - top)
    total = exponentials.sum(axis=1, dtype=np.float64)
    expected = np.einsum("bn,fbn->bf", exponentials, terms, optimize=True) / total[:, None]
    losses = np.log(total) + top[:, 0] - targets @ weights
    return losses, expected - targets
