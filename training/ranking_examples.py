"""Ranking examples of a dataset: of its instructions, and of people's histories."""

from collections.abc import Mapping, Sequence

import numpy as np

from training.history import HistoryExample, pair_with_queries
from training.ranking import RankingExamples
from training.score import CatalogueSide, Vectors

Grades = Sequence[Mapping[int, float]]


def of_instructions(h: Vectors, log_probabilities: Vectors, grades: Grades) -> RankingExamples:
    """Instructions with vectors `h` [n, H], label scores [n, K] and graded catalogue rows; they count one in all."""
    weights = np.full(len(h), 1 / max(1, len(h)), dtype=np.float32)
    return RankingExamples(h, log_probabilities, [()] * len(h), [dict(own) for own in grades], weights)


def of_people(
    people: Sequence[HistoryExample],
    queries: RankingExamples,
    states: Sequence[CatalogueSide] | None = None,
) -> RankingExamples:
    """People's last events; each has as its instruction one of `queries` that its target answers, where there is one.

    They count one in all. `states` are the catalogue as it was known before each event.
    """
    pairs = pair_with_queries(people, queries.grades)
    with_query = np.array([pair is not None for pair in pairs], dtype=np.float32)[:, None]
    rows = [pair or 0 for pair in pairs]
    return RankingExamples(
        queries.h[rows] * with_query,
        queries.log_probabilities[rows] * with_query,
        [example.history for example in people],
        [{example.target: 1.0} for example in people],
        np.full(len(people), 1 / max(1, len(people)), dtype=np.float32),
        [example.excluded for example in people],
        states,
    )


def without_instructions(
    people: Sequence[HistoryExample], states: Sequence[CatalogueSide] | None, catalogue: CatalogueSide
) -> RankingExamples:
    """People's last events, where nobody says anything: the instruction and label terms are zero."""
    labels = int(catalogue.label_ids.max(initial=0)) + 1
    width = catalogue.vectors.shape[1]
    silence = of_instructions(np.zeros((1, width), np.float32), np.zeros((1, labels), np.float32), [{}])
    return of_people(people, silence, states)


def join(first: RankingExamples, second: RankingExamples) -> RankingExamples:
    """Both, those of `first` before."""
    excluded = [list(own.excluded or [()] * len(own)) for own in (first, second)]
    states = [list(own.states or [None] * len(own)) for own in (first, second)]
    return RankingExamples(
        np.concatenate([first.h, second.h]),
        np.concatenate([first.log_probabilities, second.log_probabilities]),
        [*first.histories, *second.histories],
        [*first.grades, *second.grades],
        np.concatenate([first.weights, second.weights]),
        [*excluded[0], *excluded[1]],
        [*states[0], *states[1]],
    )
