"""Measures histories as a service would be used: each person's last event, asked of what its refresh could know."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.baselines import ItemNeighbours, popularity
from training.event_log import DAY
from training.history import HistoryExample
from training.priors import RecencyModel
from training.ranking import fit_score_weights
from training.ranking_examples import without_instructions
from training.score import CatalogueSide, ScoreWeights, Vectors
from training.timeline import Timeline

CUT = 10
FOLDS = 2
CHUNK = 64  # people scored at once
RESAMPLES = 1_000
MAX_SCORES = 10_000_000  # example-item pairs that a fold's weights are fitted on: two weights need no more
BASELINES = ("popularity", "popularity_30_days", "popularity_3_days", "item_knn")
USES = {
    "history_and_prior": "the score without an instruction: history term and prior",
    "history_only": "the history term alone, no prior",
    "prior_only": "the prior alone, the same for everyone",
    "popularity": "all events before the refresh",
    "popularity_30_days": "events of the 30 days before the refresh",
    "popularity_3_days": "events of the 3 days before the refresh",
    "item_knn": "cosine of co-occurrence before the refresh, shrunk, summed over the whole history",
    "popularity_3_days_live": "events of the 3 days before the very event: no refresh is that fresh",
}


@dataclass(frozen=True)
class _Fold:
    """What one half of the people taught: the prior's blend and two sets of weights, measured on the other half."""

    prior: RecencyModel | None
    both: ScoreWeights
    history: ScoreWeights


def leave_last_out(timeline: Timeline, people: Sequence[HistoryExample], seed: int) -> dict[str, Any]:
    """The metrics of each ranking in `USES` over the full catalogue, with 95 % bootstrap intervals over people.

    Counts, behaviour vectors and priors are those of the refresh before each event. The few numbers that blend them
    are cross-fitted: what measures one half of the people was fitted on the other. No instruction is used.
    """
    settings = timeline.settings
    measured = [person for person in people if person.events >= settings.minimum_events]
    folds = [_of_fold(people, fold) for fold in range(FOLDS)]
    if not measured or not all(folds):
        return {"people_measured": 0, "note": f"needs people with {settings.minimum_events} events in both folds"}
    fitted = [_fit_fold(timeline, folds[1 - fold], seed) for fold in range(FOLDS)]
    ranks: dict[str, list[npt.NDArray[np.int64]]] = {}
    for time, own in timeline.by_refresh(measured).items():
        for fold in range(FOLDS):
            asked = _of_fold(own, fold)
            for name, found in _ranks(timeline, time, fitted[fold], asked):
                ranks.setdefault(name, []).append(found)
    rankings = {name: {"uses": USES[name], **rank_metrics(np.concatenate(own), seed)} for name, own in ranks.items()}
    best = max(BASELINES, key=lambda name: float(rankings[name][f"ndcg@{CUT}"]))
    reference = rankings[best][f"ndcg@{CUT}"]
    return {
        "protocol": {
            "target": "the last event of each person" + (" that is new to them" if settings.exclude_seen else ""),
            "known": "events before the last refresh; of the person also those before the event",
            "refresh_days": settings.refresh_days,
            "minimum_events": settings.minimum_events,
            "seen_items_excluded": settings.exclude_seen,
            "catalogue_items": timeline.log.item_count,
            "weights": f"cross-fitted over {FOLDS} folds of people",
            "prior": settings.prior,
            "history_vectors": settings.vectors,
        },
        "people_measured": len(measured),
        "rankings": rankings,
        "best_baseline": best,
        "ratio_to_best_baseline": (rankings["history_and_prior"][f"ndcg@{CUT}"] / reference if reference > 0 else None),
    }


def rank_metrics(ranks: npt.NDArray[np.int64], seed: int) -> dict[str, Any]:
    """NDCG and hit rate at 10 and the mean reciprocal rank of ranks from 0, each with a 95 % bootstrap interval.

    With one relevant item the hit rate is the recall.
    """
    inside = ranks < CUT
    values = {
        f"ndcg@{CUT}": np.where(inside, 1 / np.log2(ranks + 2.0), 0.0),
        f"hit_rate@{CUT}": inside.astype(np.float64),
        "mrr": 1 / (ranks + 1.0),
    }
    generator = np.random.default_rng(seed)
    table = np.stack(list(values.values()), axis=1)
    means = np.stack([table[generator.integers(0, len(ranks), len(ranks))].mean(axis=0) for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    metrics: dict[str, Any] = {}
    for column, (name, own) in enumerate(values.items()):
        metrics[name] = float(own.mean())
        metrics[f"{name}_interval"] = [round(float(low[column]), 5), round(float(high[column]), 5)]
    return metrics


def _of_fold(people: Sequence[HistoryExample], fold: int) -> list[HistoryExample]:
    return [
        person for person in people if hashlib.sha256(f"fold {person.user_id}".encode()).digest()[0] % FOLDS == fold
    ]


def _fit_fold(timeline: Timeline, people: Sequence[HistoryExample], seed: int) -> _Fold:
    model = timeline.fit_prior(people, seed)
    limit = max(1, MAX_SCORES // timeline.log.item_count)
    drawn = np.random.default_rng(seed).permutation(len(people))[:limit]
    sample = sorted((people[row] for row in drawn), key=lambda person: person.time)
    examples = without_instructions(sample, timeline.states(sample, model), timeline.catalogue)
    both, history = (
        fit_score_weights(
            examples, timeline.catalogue, history=True, prior=prior, seed=seed, instructions=False
        ).weights
        for prior in (True, False)
    )
    return _Fold(model, both, history)


def _ranks(
    timeline: Timeline, time: float, fold: _Fold, people: Sequence[HistoryExample]
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """The ranks that each way gives the targets of `people`, who share a refresh and a fold."""
    log, state = timeline.log, timeline.state(time, fold.prior)
    neighbours = ItemNeighbours(log, time, timeline.settings.shrinkage)
    shared = {
        "prior_only": state.priors,
        "popularity": popularity(log, time),
        "popularity_30_days": popularity(log, time, 30),
        "popularity_3_days": popularity(log, time, 3),
    }
    for start in range(0, len(people), CHUNK):
        part = people[start : start + CHUNK]
        scores: dict[str, Vectors] = {
            name: np.broadcast_to(values, (len(part), len(values))) for name, values in shared.items()
        }
        scores["history_and_prior"] = _history(state, part, fold.both) + fold.both.delta * state.priors
        scores["history_only"] = _history(state, part, fold.history)
        scores["item_knn"] = neighbours.scores([person.excluded or person.history for person in part])
        scores["popularity_3_days_live"] = np.stack(
            [log.counts(person.time - 3 * DAY, person.time).astype(np.float32) for person in part]
        )
        for name in USES:
            yield name, target_ranks(scores[name], part)


def _history(state: CatalogueSide, people: Sequence[HistoryExample], weights: ScoreWeights) -> Vectors:
    vectors = np.stack([state.history_vector(person.history, weights.history_decay) for person in people])
    return np.asarray(weights.gamma * (vectors @ state.history_vectors.T), dtype=np.float32)


def target_ranks(scores: Vectors, people: Sequence[HistoryExample]) -> npt.NDArray[np.int64]:
    """Ranks from 0 of the targets in scores [b, N] without the excluded; equal scores keep the catalogue's order."""
    ranks = np.empty(len(people), dtype=np.int64)
    for number, person in enumerate(people):
        row = scores[number].copy()
        row[list(person.excluded)] = -np.inf
        own = row[person.target]
        ranks[number] = np.count_nonzero(row > own) + np.count_nonzero(row[: person.target] == own)
    return ranks
