"""A prior learned from interactions: how likely an item is chosen next, by how often and how lately people chose it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from training.event_log import DAY, EventLog
from training.history import HistoryExample

Floats = npt.NDArray[np.float64]

HALF_LIVES = (1.0, 3.0, 10.0, 30.0)  # days; of the counts in which events fade
WINDOWS = (3.0, 7.0)  # days; the growth of a window over the one before
AGES = (7.0, 21.0)  # days; in which what an item gains by being new fades by e
FEATURES = 2 + len(HALF_LIVES) + len(WINDOWS) + len(AGES)
RIDGE = 1e-3
MAX_EXAMPLES = 4_000  # a blend of ten numbers learns nothing from more


@dataclass(frozen=True)
class RecencyFeatures:
    """What is known of the items that have an event: `rows` [m] of the catalogue and their `values` [F, m]."""

    rows: npt.NDArray[np.int64]
    values: Floats


def recency_features(log: EventLog, time: float) -> RecencyFeatures:
    """The features of each item, from the events before `time` alone.

    Logarithms of exponentially decayed and of all counts; their growth from one window to the next; how new the item's
    first event is; and 1, for having any event at all.
    """
    log = log.before(time)
    ages = (time - log.times) / DAY
    total = log.counts()
    rows = np.flatnonzero(total)
    columns = [np.ones(len(rows)), np.log1p(total[rows])]
    for half_life in HALF_LIVES:
        columns.append(np.log1p(np.bincount(log.items, 0.5 ** (ages / half_life), log.item_count)[rows]))
    for window in WINDOWS:
        span = window * DAY
        now, earlier = log.counts(time - span), log.counts(time - 2 * span, time - span)
        columns.append((np.log1p(now) - np.log1p(earlier))[rows])
    first = np.zeros(log.item_count)
    first[log.items[::-1]] = ages[::-1]  # the oldest is written last
    columns += [np.exp(-first[rows] / age) for age in AGES]
    return RecencyFeatures(rows, np.stack(columns))


@dataclass(frozen=True)
class RecencyModel:
    """The blend of the features: `weights` [F]."""

    weights: Floats

    def priors(self, features: RecencyFeatures, item_count: int) -> npt.NDArray[np.float32]:
        """The prior of each item, float32 [N], at least 0; 0 for items without an event."""
        priors = np.zeros(item_count, dtype=np.float32)
        priors[features.rows] = np.maximum(0.0, self.weights @ features.values)
        return priors


def fit_recency(
    groups: Sequence[tuple[RecencyFeatures, Sequence[HistoryExample]]], item_count: int, seed: int
) -> RecencyModel:
    """Fit the blend by listwise cross-entropy over the full catalogue, what a person has seen left out where it is.

    `groups` pairs the features known at one refresh with the events until the next. Items without an event have the
    score 0, so they count by their number alone. The loss is convex (conditional logit, McFadden 1974).
    """
    groups = [(features, drawn) for features, drawn in _draw(groups, seed) if drawn and len(features.rows)]
    if not groups:
        return RecencyModel(np.zeros(FEATURES))
    objective = recency_loss(groups, item_count)
    found = minimize(objective, np.zeros(FEATURES), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return RecencyModel(np.asarray(found.x, dtype=np.float64))


def recency_loss(
    groups: Sequence[tuple[RecencyFeatures, Sequence[HistoryExample]]], item_count: int
) -> Callable[[Floats], tuple[float, Floats]]:
    """What `fit_recency` minimises: maps the weights [F] to the events' mean loss with a ridge, and its gradient [F].

    Each of `groups` has an event and an item with one.
    """
    terms = [_Group(features, examples, item_count) for features, examples in groups]
    total = sum(term.count for term in terms)

    def loss_and_gradient(weights: Floats) -> tuple[float, Floats]:
        loss, gradient = RIDGE * float(weights @ weights), 2 * RIDGE * weights
        for term in terms:
            own_loss, own_gradient = term.loss(weights)
            loss += own_loss / total
            gradient = gradient + own_gradient / total
        return loss, gradient

    return loss_and_gradient


def _draw(
    groups: Sequence[tuple[RecencyFeatures, Sequence[HistoryExample]]], seed: int
) -> list[tuple[RecencyFeatures, list[HistoryExample]]]:
    total = sum(len(examples) for _, examples in groups)
    keep = np.ones(total, dtype=bool)
    if total > MAX_EXAMPLES:
        keep[np.random.default_rng(seed).permutation(total)[MAX_EXAMPLES:]] = False
    flags = iter(keep.tolist())
    return [(features, [example for example in examples if next(flags)]) for features, examples in groups]


class _Group:
    """The events between two refreshes, which share their features."""

    def __init__(self, features: RecencyFeatures, examples: Sequence[HistoryExample], item_count: int) -> None:
        place = np.full(item_count, -1)
        place[features.rows] = np.arange(len(features.rows))
        self.values = features.values
        self.count = len(examples)
        targets = place[[example.target for example in examples]]
        self.gains = self.values[:, targets[targets >= 0]].sum(axis=1)
        seen = [place[list(example.excluded)] if example.excluded else place[:0] for example in examples]
        self.cold = np.array(
            [item_count - len(features.rows) - int((rows < 0).sum()) for rows in seen], dtype=np.float64
        )
        known = [rows[rows >= 0] for rows in seen]
        lengths = np.cumsum([0, *map(len, known)])
        columns = np.concatenate(known) if known else np.zeros(0, np.int64)
        shape = (self.count, len(features.rows))
        self.seen = csr_matrix((np.ones(len(columns)), columns, lengths), shape=shape)

    def loss(self, weights: Floats) -> tuple[float, Floats]:
        """The sum of the group's losses and its gradient [F]."""
        scores = weights @ self.values
        top = max(0.0, float(scores.max()))
        mass = np.exp(scores - top)
        sums = np.maximum(mass.sum() - self.seen @ mass + self.cold * np.exp(-top), 1e-300)
        weighted = (self.values * mass).T
        expected = (weighted.sum(axis=0) - self.seen @ weighted) / sums[:, None]
        loss = float(np.log(sums).sum()) + top * self.count - float(weights @ self.gains)
        return loss, expected.sum(axis=0) - self.gains
