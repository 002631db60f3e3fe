"""The search takes what is faster beyond doubt, and the settings of before where the outcome is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from export.settings import ServingSettings
from sweep.candidates import QUESTIONS
from sweep.search import Outcome, search
from sweep.stage import Candidate, Rates, gain

IN_FLIGHT = (1, 32)
ROUNDS = 3


def measuring(
    speed: Callable[[Candidate], float], asked: list[tuple[str, list[ServingSettings]]] | None = None
) -> Callable[[str, Sequence[Candidate]], list[Rates]]:
    """Rates as if each candidate had this speed, whatever is in flight and in every round."""

    def measure(question: str, candidates: Sequence[Candidate]) -> list[Rates]:
        if asked is not None:
            asked.append((question, [one.settings for one in candidates]))
        return [rates_of([100 * speed(one)] * ROUNDS) for one in candidates]

    return measure


def rates_of(rounds: Sequence[float]) -> Rates:
    per_second = {number: tuple(rounds) for number in IN_FLIGHT}
    p50 = {number: tuple(1_000 * number / rate for rate in rounds) for number in IN_FLIGHT}
    return Rates(p50_ms=p50, per_second=per_second)


def speed_of(candidate: Candidate) -> float:
    """Fused is the faster way; a delay and no batching slow it down."""
    settings = candidate.settings
    speed = 2.0 if settings.mode == "fused" else 1.0
    speed *= 1 + 0.1 * (settings.max_batch_size == 64)
    speed *= 1 - 0.1 * (settings.max_queue_delay_microseconds > 0)
    return speed if candidate.batching else speed / 3


def test_each_question_is_asked_around_the_best_so_far() -> None:
    asked: list[tuple[str, list[ServingSettings]]] = []
    outcome = search(ServingSettings(max_queue_size=1), 1, measuring(speed_of, asked))
    assert outcome.after == ServingSettings(mode="fused", max_batch_size=64, max_queue_size=224)
    changed = {"mode": "fused", "max_batch_size": 64, "max_queue_size": 224}
    assert outcome.changes(outcome.before) == changed
    assert outcome.changes(ServingSettings(mode="fused")) == {"max_batch_size": 64, "max_queue_size": 224}
    # In one step there are no buckets to choose, on one core no instances.
    assert [question for question, _ in asked] == ["steps and engine", "batch size", "queue delay", "all together"]
    assert all(settings.mode == "fused" for _, tried in asked[1:3] for settings in tried)
    last = outcome.trials[-1].measured
    assert [one.gain[0] for one in last] == pytest.approx([1, 2.2, 2.2 / 3])
    assert [one.batching for one in last] == [True, True, False]


def test_instances_and_threads_fill_the_cores() -> None:
    asked: list[tuple[str, list[ServingSettings]]] = []
    search(ServingSettings(), 4, measuring(lambda _: 1.0, asked))
    tried = dict(asked)["instances and threads"]
    assert {(one.encoder_instances, one.encoder_threads) for one in tried} == {(1, 1), (1, 4), (2, 2), (4, 1)}


def test_buckets_end_where_they_ended() -> None:
    asked: list[tuple[str, list[ServingSettings]]] = []
    search(ServingSettings(length_buckets=(16, 96)), 1, measuring(lambda _: 1.0, asked))
    tried = {one.length_buckets for one in dict(asked)["length buckets"]}
    assert tried == {(16, 96), (16, 32, 64, 96), (8, 16, 24, 32, 40, 48, 64, 96)}


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ((8,), {(8,)}),
        ((16,), {(16,), (8, 16)}),
        ((17,), {(17,), (16, 17), (8, 16, 17)}),
        ((16, 32), {(16, 32), (8, 16, 24, 32)}),
    ],
)
def test_short_buckets_are_no_trouble(buckets: tuple[int, ...], expected: set[tuple[int, ...]]) -> None:
    asked: list[tuple[str, list[ServingSettings]]] = []
    search(ServingSettings(length_buckets=buckets), 1, measuring(lambda _: 1.0, asked))
    tried = dict(asked).get("length buckets", [ServingSettings(length_buckets=buckets)])
    assert {one.length_buckets for one in tried} == expected


def outcome_of(fused: Sequence[float], ensemble: Sequence[float]) -> Outcome:
    def measure(_question: str, candidates: Sequence[Candidate]) -> list[Rates]:
        return [rates_of(fused if one.settings.mode == "fused" else ensemble) for one in candidates]

    return search(ServingSettings(), 1, measure, fixed={"engine"})


@pytest.mark.parametrize(
    ("fused", "taken"),
    [
        ((110, 110, 110), True),
        ((101, 101, 101), False),  # not worth a change
        ((150, 150, 99), False),  # not in every round
        ((90, 90, 90), False),
    ],
)
def test_a_change_must_be_worth_it_and_be_so_in_every_round(fused: Sequence[float], taken: bool) -> None:
    assert outcome_of(fused, (100, 100, 100)).after.mode == ("fused" if taken else "ensemble")


def test_what_is_not_better_in_the_end_is_not_taken() -> None:
    def measure(question: str, candidates: Sequence[Candidate]) -> list[Rates]:
        better = 1.5 if question != "all together" else 0.8
        return [rates_of([100 * (better if one.settings.mode == "fused" else 1)] * ROUNDS) for one in candidates]

    outcome = search(ServingSettings(max_queue_size=96), 1, measure)
    assert outcome.after == outcome.before
    assert outcome.changes(outcome.before) == {}


def test_given_settings_stay_as_given() -> None:
    asked: list[tuple[str, list[ServingSettings]]] = []
    fixed = {"mode", "engine", "max_batch_size", "max_queue_size"}
    outcome = search(ServingSettings(), 1, measuring(speed_of, asked), fixed=fixed)
    assert outcome.after == outcome.before
    assert [question for question, _ in asked] == ["length buckets", "queue delay", "all together"]


@pytest.mark.parametrize(
    ("rate", "bound", "expected"), [(250, 256, 256), (500, 256, 512), (10, 256, 64), (210, 1, 224), (210, 0, 0)]
)
def test_the_longest_queue_is_worked_off_in_a_second(rate: float, bound: int, expected: int) -> None:
    outcome = search(
        ServingSettings(max_queue_size=bound),
        1,
        lambda _, some: [rates_of([rate] * ROUNDS) for _ in some],
        questions=(),
    )
    assert outcome.after.max_queue_size == expected


def test_gain_weighs_few_and_many_in_flight_alike() -> None:
    reference = Rates(p50_ms={}, per_second={1: (10, 10), 32: (100, 100)})
    candidate = Rates(p50_ms={}, per_second={1: (20, 10), 32: (100, 200)})
    assert gain(candidate, reference) == pytest.approx((2**0.5, 2**0.5))


def test_there_is_something_to_choose_for_every_question() -> None:
    names = [one.name for one in QUESTIONS if len(one.answers(ServingSettings(), 4)) > 1]
    assert names == [one.name for one in QUESTIONS]
