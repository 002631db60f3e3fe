"""Taste: how much a person's choices follow what is new, what is popular and what is old, learned from histories.

The history term is a product of a history's mean vector with an item's. Dimensions that say how new, how popular and
how old an item is let that product raise new items for those who chose new ones. They cost the server next to nothing:
they are four more columns of the history vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from training.history import HistoryExample
from training.priors import FEATURES, Choices, Floats, ItemFeatures, RecencyModel, draw
from training.score import Vectors

DIMENSIONS = 4  # of the taste
DECAY = 0.8  # of a history, newest first
MAX_EXAMPLES = 2_000
MAX_SCORES = 15_000_000  # example-column pairs that a fit holds
MAX_ITERATIONS = 80
HEAD = 0.5  # 0 is plain cross-entropy; the more, the less choices count that nothing would bring to the top
RIDGE = 5e-3  # of terms in like units; a few thousand choices must not learn their own noise
START = 0.1  # of the loadings: where all are 0 the gradient is too

Group = tuple[ItemFeatures, Vectors, Sequence[HistoryExample]]


@dataclass(frozen=True)
class TasteModel:
    """The prior that goes with the taste, and how features become dimensions.

    A feature counts as its distance from `centre` [F], what histories hold on average, in units of `scale` [F]: the
    average history has no taste. `loadings` [F, D] turn features into dimensions; `behaviour` is what products of
    behaviour vectors count beside them.
    """

    prior: RecencyModel
    centre: Floats
    scale: Floats
    loadings: Floats
    behaviour: float

    def history_vectors(self, features: ItemFeatures, behaviour: Vectors) -> Vectors:
        """The behaviour vectors [N, B], weighted, and beside them the taste's dimensions, float32 [N, B + D]."""
        standard = (features.values.T - self.centre) / self.scale
        taste = features.per_item(standard @ self.loadings)
        return np.hstack([np.sqrt(self.behaviour, dtype=np.float32) * behaviour, taste])


def fit_taste(groups: Sequence[Group], start: RecencyModel, seed: int) -> TasteModel:
    """Fit prior, loadings and the behaviour term's weight together, by listwise cross-entropy over the full catalogue.

    `groups` pairs what was known at one refresh, features and behaviour vectors [N, B], with the events until the next.
    `start` is the prior that ignores histories. The score of a column is `w·x + b <behaviour> + <L u, L x>`, with u the
    mean of the standardised features of a history. The product of like with like keeps the form that is served.
    """
    behaviour = {id(features): vectors for features, vectors, _ in groups}
    limit = MAX_SCORES // max([len(features.counts) for features, _, _ in groups], default=1)
    drawn = draw([(features, own) for features, _, own in groups], max(1, min(limit, MAX_EXAMPLES)), seed)
    terms = [_Histories(features, behaviour[id(features)], own) for features, own in drawn if own]
    if not terms:
        return TasteModel(start, np.zeros(FEATURES), np.ones(FEATURES), np.zeros((FEATURES, DIMENSIONS)), 0.0)
    centre, scale = _standard(terms)
    spread = max(float(np.sqrt(np.mean([np.square(term.behaviour).mean() for term in terms]))), 1e-12)
    for term in terms:
        term.standardise(centre, scale, spread)
    total = sum(len(term.choices) for term in terms)
    size = FEATURES * DIMENSIONS

    def objective(point: Floats, head: float) -> tuple[float, Floats]:
        losses = [term.loss(point, head) for term in terms]
        loss = RIDGE * float(point @ point) + sum(own for own, _ in losses) / total
        return loss, 2 * RIDGE * point + sum((own for _, own in losses), np.zeros(len(point))) / total

    point = np.concatenate([start.weights * scale, START * np.random.default_rng(seed).normal(size=size), [START]])
    bounds = [(None, None)] * (FEATURES + size) + [(0.0, None)]
    options = {"maxiter": MAX_ITERATIONS}
    for head in (0.0, HEAD):  # the second needs a start at which it can tell which choices are within reach
        fit = minimize(objective, point, (head,), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        point = np.asarray(fit.x, dtype=np.float64)
    weights, loadings, strength = _parts(point)
    return TasteModel(RecencyModel(weights / scale), centre, scale, loadings, strength / spread)


def _parts(point: Floats) -> tuple[Floats, Floats, float]:
    """The prior's weights [F], the loadings [F, D] and the behaviour term's weight."""
    return point[:FEATURES], point[FEATURES:-1].reshape(FEATURES, DIMENSIONS), float(point[-1])


def _standard(terms: Sequence["_Histories"]) -> tuple[Floats, Floats]:
    """The mean of the features in histories, and their standard deviation over items; 1 where they are all alike."""
    held = sum(float(term.held.sum()) for term in terms)
    centre = sum((term.held @ (term.history @ term.choices.values.T) for term in terms), np.zeros(FEATURES))
    counts = np.concatenate([term.choices.counts == 1 for term in terms])
    scale = np.concatenate([term.choices.values for term in terms], axis=1)[:, counts].std(axis=1)
    return centre / max(held, 1.0), np.where(scale > 1e-6, scale, 1.0)


class _Histories:
    """The choices of people who share a refresh, with their histories."""

    def __init__(self, features: ItemFeatures, behaviour: Vectors, examples: Sequence[HistoryExample]) -> None:
        self.choices = Choices(features, examples)
        self.held = np.array([bool(example.history) for example in examples], dtype=np.float64)
        rows = np.array([row for example in examples for row in example.history], dtype=np.int64)
        lengths = [len(example.history) for example in examples]
        people = np.repeat(np.arange(len(examples)), lengths)
        weights = np.concatenate([[0.0], *(DECAY ** np.arange(n) / (DECAY ** np.arange(n)).sum() for n in lengths)])[1:]
        shape = (len(examples), len(features.counts))
        self.history = csr_matrix((weights, (people, features.columns[rows])), shape=shape)
        means = csr_matrix((weights, (people, rows)), shape=(len(examples), len(behaviour))) @ behaviour
        self.behaviour = np.asarray(means @ _of_columns(features, behaviour).T, dtype=np.float32)
        seen = self.choices.seen.tocoo()
        self.seen = (seen.row, seen.col, seen.data.astype(np.float32))

    def standardise(self, centre: Floats, scale: Floats, spread: float) -> None:
        """Keep the terms in like units: `items` [M, F], `people` [n, F], the means of histories, and `behaviour`."""
        self.behaviour /= np.float32(spread)
        self.items = ((self.choices.values.T - centre) / scale).astype(np.float32)
        self.people = np.asarray(self.history @ self.items, dtype=np.float32)

    def loss(self, point: Floats, head: float) -> tuple[float, Floats]:
        """The sum of the losses, `(1 - p**head) / head` of each choice's probability p, -log p for 0; its gradient.

        The first is the generalised cross-entropy of Zhang and Sabuncu (2018).
        """
        weights, loadings, strength = _parts(point)
        loading = loadings.astype(np.float32)
        people, items = self.people @ loading, self.items @ loading
        shared = self.items @ weights.astype(np.float32)
        scores = people @ items.T
        scores += shared
        scores += np.float32(strength) * self.behaviour
        place = (np.arange(len(scores)), self.choices.targets)
        chosen = scores[place].astype(np.float64)
        top = scores.max(axis=1, keepdims=True)
        scores -= top
        single = np.exp(scores, out=scores)
        row, column, count = self.seen
        seen = count * single[row, column]
        single *= self.choices.counts.astype(np.float32)
        np.subtract.at(single, (row, column), seen)
        sums = np.maximum(single.sum(axis=1, dtype=np.float64), 1e-30)
        losses = np.log(sums) + top[:, 0] - chosen
        single /= sums[:, None].astype(np.float32)  # now the gradient by score
        single[place] -= 1
        if head:
            shares = np.exp(-head * losses)
            single *= shares[:, None].astype(np.float32)
            losses = (1 - shares) / head
        of_loadings = self.people.T @ (single @ items) + self.items.T @ (single.T @ people)
        parts = [
            single.sum(axis=0) @ self.items,
            of_loadings.ravel(),
            [float((single * self.behaviour).sum())],
        ]
        return float(losses.sum()), np.concatenate(parts)


def _of_columns(features: ItemFeatures, vectors: Vectors) -> Vectors:
    """The mean of the vectors [N, B] of each column's items, [M, B]."""
    items = len(features.columns)
    members = csr_matrix((np.ones(items), (features.columns, np.arange(items))), shape=(len(features.counts), items))
    return np.asarray((members @ vectors) / features.counts[:, None], dtype=np.float32)
