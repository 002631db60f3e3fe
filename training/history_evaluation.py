"""Measures histories as a service would be used: each person's last event, asked of what its refresh could know."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from training.baselines import ItemNeighbours, popularity
from training.event_log import DAY
from training.history import HistoryExample
from training.ranking import fit_score_weights
from training.ranking_examples import without_instructions
from training.score import CatalogueSide, ScoreWeights, Vectors
from training.taste import DECAY
from training.timeline import Learned, Timeline

CUT = 10
GROWTH = 1.15  # of the events, after which the measurement learns anew
CHUNK = 64  # people scored at once
RESAMPLES = 1_000
MAX_SCORES = 10_000_000  # example-item pairs that weights are fitted on: two weights need no more
UNTAUGHT = ScoreWeights(alpha=0, beta=0, gamma=1, delta=1, history_decay=1)
BASELINES = ("popularity", "popularity_30_days", "popularity_3_days", "item_knn")
USES = {
    "history_and_prior": "the score without an instruction: history term and prior",
    "history_only": "the history term alone: neither prior nor taste",
    "prior_only": "the prior alone, the same for everyone",
    "popularity": "all events before the refresh",
    "popularity_30_days": "events of the 30 days before the refresh",
    "popularity_3_days": "events of the 3 days before the refresh",
    "item_knn": "cosine of co-occurrence before the refresh, shrunk, summed over the whole history",
    "popularity_3_days_live": "events of the 3 days before the very event: no refresh is that fresh",
}


@dataclass(frozen=True)
class _Lesson:
    """What earlier events taught: prior and taste, and two sets of weights, with the prior and without it."""

    learned: Learned
    both: ScoreWeights
    history: ScoreWeights


def leave_last_out(
    timeline: Timeline,
    people: Sequence[HistoryExample],
    known_before: Callable[[float], Sequence[HistoryExample]],
    seed: int,
) -> dict[str, Any]:
    """The metrics of each ranking in `USES` over the full catalogue, with 95 % bootstrap intervals over people.

    Nothing comes from after the last refresh before an event but the person's own history: counts, behaviour vectors
    and priors are those of that refresh, and the numbers that blend them were learned from `known_before` a refresh at
    or before it. They are learned anew whenever the events have grown by a seventh. No instruction is used.
    """
    settings = timeline.settings
    measured = [person for person in people if person.events >= settings.minimum_events]
    if not measured:
        return {"people_measured": 0, "note": f"nobody has {settings.minimum_events} events"}
    ranks: dict[str, list[npt.NDArray[np.int64]]] = {}
    lesson, seen = _Lesson(Learned(), UNTAUGHT, UNTAUGHT), 0
    for time, own in timeline.by_refresh(measured).items():
        known = len(timeline.log.before(time))
        if known > GROWTH * seen:
            lesson, seen = _learn(timeline, sorted(known_before(time), key=lambda one: one.time), seed), known
        for name, found in _ranks(timeline, time, lesson, own):
            ranks.setdefault(name, []).append(found)
    joined = {name: np.concatenate(own) for name, own in ranks.items()}
    rankings = {name: {"uses": USES[name], **rank_metrics(own, seed)} for name, own in joined.items()}
    best = max(BASELINES, key=lambda name: float(rankings[name][f"ndcg@{CUT}"]))
    return {
        "protocol": {
            "target": "the last event of each person" + (" that is new to them" if settings.exclude_seen else ""),
            "known": "events before the last refresh; of the person also those before the event",
            "refresh_days": settings.refresh_days,
            "minimum_events": settings.minimum_events,
            "seen_items_excluded": settings.exclude_seen,
            "catalogue_items": timeline.log.item_count,
            "weights": f"learned from earlier events, anew when they have grown {GROWTH:g}-fold",
            "prior": settings.prior,
            "history_vectors": settings.vectors,
            "taste": settings.taste,
        },
        "people_measured": len(measured),
        "rankings": rankings,
        "best_baseline": best,
        **_ratio(joined["history_and_prior"], joined[best], seed),
    }


def _ratio(own: npt.NDArray[np.int64], reference: npt.NDArray[np.int64], seed: int) -> dict[str, Any]:
    """The ratio of two rankings' NDCG, with the interval of the same people drawn for both (paired bootstrap)."""
    gains = np.stack([_gains(own), _gains(reference)], axis=1)
    top, bottom = gains.mean(axis=0)
    if bottom == 0:
        return {"ratio_to_best_baseline": None}
    generator = np.random.default_rng(seed)
    drawn = np.stack([gains[generator.integers(0, len(gains), len(gains))].mean(axis=0) for _ in range(RESAMPLES)])
    ratios = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(ratios[:, 0] / ratios[:, 1], [0.025, 0.975])
    return {
        "ratio_to_best_baseline": float(top / bottom),
        "ratio_to_best_baseline_interval": [round(float(low), 5), round(float(high), 5)],
    }


def _gains(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(ranks < CUT, 1 / np.log2(ranks + 2.0), 0.0)


def rank_metrics(ranks: npt.NDArray[np.int64], seed: int) -> dict[str, Any]:
    """NDCG and hit rate at 10 and the mean reciprocal rank of ranks from 0, each with a 95 % bootstrap interval.

    With one relevant item the hit rate is the recall.
    """
    inside = ranks < CUT
    values = {
        f"ndcg@{CUT}": _gains(ranks),
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


def _learn(timeline: Timeline, people: Sequence[HistoryExample], seed: int) -> _Lesson:
    learned = timeline.learn(people, seed)
    if learned.taste is not None:  # fitted together with gamma and delta, so both are 1
        together = UNTAUGHT.model_copy(update={"history_decay": DECAY})
        return _Lesson(learned, together, together)
    if not people:
        return _Lesson(learned, UNTAUGHT, UNTAUGHT)
    limit = max(1, MAX_SCORES // timeline.log.item_count)
    drawn = np.random.default_rng(seed).permutation(len(people))[:limit]
    sample = sorted((people[row] for row in drawn), key=lambda person: person.time)
    examples = without_instructions(sample, timeline.states(sample, learned), timeline.catalogue)
    both, history = (
        fit_score_weights(
            examples, timeline.catalogue, history=True, prior=prior, seed=seed, instructions=False
        ).weights
        for prior in (True, False)
    )
    return _Lesson(learned, both, history)


def _ranks(
    timeline: Timeline, time: float, lesson: _Lesson, people: Sequence[HistoryExample]
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """The ranks that each way gives the targets of `people`, who share a refresh."""
    log, state = timeline.log, timeline.state(time, lesson.learned)
    plain = timeline.state(time, replace(lesson.learned, taste=None))
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
        scores["history_and_prior"] = _history(state, part, lesson.both) + lesson.both.delta * state.priors
        scores["history_only"] = _history(plain, part, lesson.history)
        scores["item_knn"] = neighbours.scores([person.whole for person in part])
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
