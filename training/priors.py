"""A prior learned from interactions: how likely an item is chosen next, by how often and how lately people chose it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from training.event_log import DAY, EventLog
from training.history import HistoryExample

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HALF_LIVES = (1.0, 3.0, 10.0, 30.0)  # days; of the counts in which events fade
WINDOWS = (3.0, 7.0)  # days; the growth of a window over the one before
AGES = (7.0, 21.0)  # days; in which what an item gains by being new fades by e
YEAR = 365.25 * DAY
OLDEST = 80  # years; older releases count alike
OF_EVENTS = 2 + len(HALF_LIVES) + len(WINDOWS) + len(AGES)
FEATURES = OF_EVENTS + 3
RIDGE = 1e-3
MAX_EXAMPLES = 4_000  # a blend of a dozen numbers learns nothing from more


@dataclass(frozen=True)
class ItemFeatures:
    """What is known of all items at a time.

    `columns` [N] are the items' columns of `values` [F, M]. Each item that has an event has one of its own, items
    without an event share that of their age since release; `counts` [M] says how many items a column stands for.
    """

    columns: Integers
    values: Floats
    counts: Floats
    has_events: bool

    def per_item(self, of_columns: Floats) -> npt.NDArray[np.float32]:
        """Values of columns [M, ...] as values of items [N, ...], float32."""
        return of_columns[self.columns].astype(np.float32)


def item_features(log: EventLog, time: float, released: Floats | None = None) -> ItemFeatures:
    """The features of each item, from the events before `time` and from `released` [N], seconds, NaN for unknown.

    1 for having an event; logarithms of all and of exponentially decayed counts; their growth from one window to the
    next; how new the item's first event is; released within a year, within the year before, and the logarithm of the
    years since. An unknown release counts as the middle one of those known.
    """
    log = log.before(time)
    ages = (time - log.times) / DAY
    total = log.counts()
    rows = np.flatnonzero(total)
    features = [np.ones(len(rows)), np.log1p(total[rows])]
    for half_life in HALF_LIVES:
        features.append(np.log1p(np.bincount(log.items, 0.5 ** (ages / half_life), log.item_count)[rows]))
    for window in WINDOWS:
        span = window * DAY
        now, earlier = log.counts(time - span), log.counts(time - 2 * span, time - span)
        features.append((np.log1p(now) - np.log1p(earlier))[rows])
    first = np.zeros(log.item_count)
    first[log.items[::-1]] = ages[::-1]  # the oldest is written last
    features += [np.exp(-first[rows] / age) for age in AGES]
    years = _years(released, time, log.item_count)
    cold = np.flatnonzero(total == 0)
    cold_years, place, counts = np.unique(years[cold], return_inverse=True, return_counts=True)
    columns = np.empty(log.item_count, dtype=np.int64)
    columns[rows], columns[cold] = np.arange(len(rows)), len(rows) + place
    of_events = np.hstack([np.stack(features), np.zeros((OF_EVENTS, len(cold_years)))])
    values = np.vstack([of_events, _release_features(np.concatenate([years[rows], cold_years]))])
    return ItemFeatures(columns, values, np.concatenate([np.ones(len(rows)), counts]), bool(len(rows)))


def _years(released: Floats | None, time: float, items: int) -> Floats:
    """Whole years from each item's release to `time`, -1 for all that come later; NaN where no release is known."""
    if released is None or np.isnan(released).all():
        return np.full(items, np.nan)
    known = np.where(np.isnan(released), np.nanmedian(released), released)
    return np.asarray(np.clip(np.floor((time - known) / YEAR), -1, OLDEST), dtype=np.float64)


def _release_features(years: Floats) -> Floats:
    features = np.stack([years == 0, years == 1, np.log1p(np.maximum(years, 0))])
    return np.asarray(np.where(np.isnan(years), 0.0, features), dtype=np.float64)


@dataclass(frozen=True)
class RecencyModel:
    """The blend of the features: `weights` [F]."""

    weights: Floats

    def priors(self, features: ItemFeatures) -> npt.NDArray[np.float32]:
        """The prior of each item, float32 [N]; the least is 0, for the score knows no negative one."""
        scores = self.weights @ features.values
        return features.per_item(scores - scores.min(initial=np.inf)) if len(scores) else np.zeros(0, np.float32)


class Choices:
    """What people chose between two refreshes, so that they share the items' features.

    `targets` [n] are columns; `seen` [n, M] counts the items of each column that a person may not be answered.
    """

    def __init__(self, features: ItemFeatures, examples: Sequence[HistoryExample]) -> None:
        """Read the examples in terms of the columns."""
        self.values, self.counts = features.values, features.counts
        self.targets = features.columns[[example.target for example in examples]]
        excluded = [list(example.excluded) for example in examples]
        rows = np.array([row for own in excluded for row in own], dtype=np.int64)
        people = np.repeat(np.arange(len(examples)), [len(own) for own in excluded])
        shape = (len(examples), len(self.counts))
        self.seen = csr_matrix((np.ones(len(rows)), (people, features.columns[rows])), shape=shape)

    def __len__(self) -> int:
        """The number of choices n."""
        return len(self.targets)

    def loss(self, weights: Floats) -> tuple[float, Floats]:
        """The sum of the losses where the features alone rank, and its gradient [F]."""
        scores = weights @ self.values
        top = float(scores.max())
        single = np.exp(scores - top)
        mass = self.counts * single
        sums = np.maximum(mass.sum() - self.seen @ single, 1e-300)
        weighted = (self.values * mass).sum(axis=1) - self.seen @ (self.values * single).T
        gains = self.values[:, self.targets].sum(axis=1)
        loss = float(np.log(sums).sum()) + top * len(self) - float(weights @ gains)
        return loss, (weighted / sums[:, None]).sum(axis=0) - gains


def fit_recency(groups: Sequence[tuple[ItemFeatures, Sequence[HistoryExample]]], seed: int) -> RecencyModel:
    """Fit the blend by listwise cross-entropy over the full catalogue, what a person has seen left out where it is.

    `groups` pairs the features known at one refresh with the events until the next. The loss is convex (conditional
    logit, McFadden 1974).
    """
    choices = [Choices(features, own) for features, own in draw(groups, MAX_EXAMPLES, seed) if own]
    if not choices:
        return RecencyModel(np.zeros(FEATURES))
    total = sum(len(own) for own in choices)

    def objective(weights: Floats) -> tuple[float, Floats]:
        loss, gradient = RIDGE * float(weights @ weights), 2 * RIDGE * weights
        for own in choices:
            own_loss, own_gradient = own.loss(weights)
            loss += own_loss / total
            gradient = gradient + own_gradient / total
        return loss, gradient

    found = minimize(objective, np.zeros(FEATURES), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return RecencyModel(np.asarray(found.x, dtype=np.float64))


def draw(
    groups: Sequence[tuple[ItemFeatures, Sequence[HistoryExample]]], limit: int, seed: int
) -> list[tuple[ItemFeatures, list[HistoryExample]]]:
    """The groups with at most `limit` examples in all, drawn at random; only those where something was known."""
    groups = [(features, own) for features, own in groups if features.has_events]
    total = sum(len(examples) for _, examples in groups)
    keep = np.ones(total, dtype=bool)
    if total > limit:
        keep[np.random.default_rng(seed).permutation(total)[limit:]] = False
    flags = iter(keep.tolist())
    return [(features, [example for example in examples if next(flags)]) for features, examples in groups]
