"""The tests behind a verdict keep their promise, however often one looks, and find what is there."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.reader import StoredEvent
from serving.canary.evidence import sort_events
from serving.canary.sequential import Rate, difference, error_rate

EXPERIMENTS = 150
LOOKS = (100, 150, 200, 300, 400, 600, 800, 1_200, 1_600, 2_400)


def visits(generator: np.random.Generator, people: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Impressions and clicks [people]: few or many visits a person, and people of different tempers."""
    impressions = 1 + generator.negative_binomial(1, 0.2, people)
    own = generator.beta(2 * rate, 2 * (1 - rate), people)
    return impressions, generator.binomial(impressions, own)


def first_exclusion(generator: np.random.Generator, live: float, canary: float, truth: float) -> int | None:
    """The look at which the interval first leaves out a difference; None if it never does."""
    arms = [visits(generator, LOOKS[-1], rate) for rate in (live, canary)]
    for look, people in enumerate(LOOKS):
        found = difference(*(Rate.of(clicks[:people], shown[:people]) for shown, clicks in arms))
        if not found.low <= truth <= found.high:
            return look
    return None


def test_looking_ten_times_finds_no_difference_that_is_not_there() -> None:
    generator = np.random.default_rng(1)
    wrong = sum(first_exclusion(generator, 0.1, 0.1, 0.0) is not None for _ in range(EXPERIMENTS))
    # At 5 %, 16 of 150 would be three standard deviations above the expected 7.5; of 2,000 experiments 1.8 % are wrong.
    assert wrong <= 16


def test_a_plain_interval_would_be_wrong_far_too_often() -> None:
    """The same looks at an interval of a fixed size: what the sequential one is for."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(EXPERIMENTS):
        arms = [visits(generator, LOOKS[-1], 0.1) for _ in range(2)]
        rates = [[Rate.of(clicks[:people], shown[:people]) for shown, clicks in arms] for people in LOOKS]
        wrong += any(
            abs(after.value - before.value) > 1.96 * (after.variance + before.variance) ** 0.5
            for before, after in rates
        )
    assert wrong > 18


def test_people_who_come_back_between_looks_are_no_new_evidence() -> None:
    """The same people all along, ever more of their visits: the interval still holds."""
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(EXPERIMENTS):
        own = [generator.beta(0.4, 3.6, 200) for _ in range(2)]
        truth = 0.0
        shown, clicks = np.zeros((2, 200)), np.zeros((2, 200))
        left_out = False
        for _ in range(12):
            more = 1 + generator.poisson(1.0, (2, 200))
            shown += more
            clicks += [generator.binomial(count, rate) for count, rate in zip(more, own, strict=True)]
            found = difference(*(Rate.of(clicks[arm], shown[arm]) for arm in range(2)))
            left_out |= not found.low <= truth <= found.high
        wrong += left_out
    assert wrong <= 16


SHOWN = StoredEvent(1, "e", "shop", "impression", "", 1.0, 0.0, 0.0, "", "", "", "1")


def purchases_days_later(generator: np.random.Generator, people: int, loss: float) -> Iterator[StoredEvent]:
    """Four days without the canary, three with it; people buy 1.5 days after an impression in the mean."""
    for person in range(people):
        canarys, own = generator.random() < 0.5, generator.beta(0.6, 3.4)
        for day in np.flatnonzero(generator.random(7) < 0.7) - 4:
            release, rate = ("2", own * (1 - loss)) if canarys and day >= 0 else ("1", own)
            items, bought = generator.integers(12, size=4), generator.random(4) < rate
            at = day + generator.random()
            for item, buys in zip(items, bought, strict=True):
                shown = replace(SHOWN, item_id=str(item), received=at, user_hash=str(person), release=release)
                yield shown
                if buys:
                    yield replace(shown, event="purchase", received=at + generator.exponential(1.5))


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 0, 8), (0.9, 36, 40)])
def test_purchases_that_come_days_later_favour_neither_release(loss: float, least: int, most: int) -> None:
    """The live release made impressions before the canary came up; what comes of these must not count for it alone."""
    generator = np.random.default_rng(5)
    dropped = 0
    for _ in range(40):
        events = list(purchases_days_later(generator, 300, loss))
        found_worse = False
        for look in (1.0, 2.0, 3.0):
            known = (one for one in events if one.received < look)
            sides = sort_events(known, live=1, canary=2, event="purchase", since=0.0)
            found = difference(*(Rate.of(*side.columns()) for side in (sides.live, sides.canary)))
            found_worse |= not found.low <= 0 <= found.high
        dropped += found_worse
    assert least <= dropped <= most  # 2 of 40 are expected to be wrong at 5 %; 8 are more than four deviations above


def test_a_planted_loss_is_found() -> None:
    generator = np.random.default_rng(3)
    found = sum(first_exclusion(generator, 0.2, 0.1, 0.0) is not None for _ in range(50))
    assert found >= 48


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3])
def test_the_interval_of_errors_covers_the_truth_at_all_looks(share: float) -> None:
    generator = np.random.default_rng(4)
    wrong = 0
    for _ in range(EXPERIMENTS):
        failed = np.cumsum(generator.random(2_000) < share)
        intervals = (error_rate(int(failed[at - 1]), at) for at in (3, 30, 100, 300, 1_000, 2_000))
        wrong += any(not found.low <= share <= found.high for found in intervals)
    assert wrong <= 16


@settings(max_examples=60)
@given(requests=st.integers(0, 5_000), data=st.data())
def test_the_interval_of_errors_holds_what_was_measured_and_narrows(requests: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, requests))
    found = error_rate(errors, requests)
    assert 0 <= found.low <= found.value <= found.high <= 1
    more = error_rate(100 * errors, 100 * requests)
    assert more.high - more.low <= found.high - found.low + 1e-9


def test_no_failure_in_a_thousand_requests_says_one_in_a_hundred() -> None:
    assert error_rate(0, 1_000, level=0.025).high == pytest.approx(0.0105, abs=0.001)
    with pytest.raises(ValueError, match="3 errors of 2"):
        error_rate(3, 2)


def test_a_person_counts_once_however_often_they_come() -> None:
    once = Rate.of([1, 0] * 50, [1, 1] * 50)
    often = Rate.of([30, 0] * 50, [30, 30] * 50)
    assert often.value == once.value
    assert often.variance == pytest.approx(once.variance)
    with pytest.raises(ValueError, match="two people"):
        Rate.of([1], [2])


def test_without_any_spread_nothing_is_claimed() -> None:
    nothing = Rate.of([0, 0, 0], [1, 1, 1])
    assert difference(nothing, nothing).high == float("inf")
