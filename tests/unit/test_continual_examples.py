"""What feedback counts, how much, and what does not."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.feedback_examples import collect
from continual.settings import ContinualSettings
from feedback.reader import StoredEvent

LABELS = {"shirt-1": "Shirts", "shirt-2": "Shirts", "hat-1": "Hats"}


def event(sequence: int = 1, **changed: object) -> StoredEvent:
    given = {
        "event_id": f"e-{sequence}",
        "domain": "shop",
        "event": "click",
        "item_id": "shirt-1",
        "value": 1.0,
        "timestamp": 1.0,
        "received": 1.0,
        "user_hash": f"person-{sequence}",
        "instruction": "some drip",
        "request_id": "",
        "release": "1",
        **changed,
    }
    return StoredEvent(sequence=sequence, **given)


def enough(**changed: object) -> list[StoredEvent]:
    return [event(number, **changed) for number in range(1, 11)]


def test_what_people_took_becomes_an_example_of_its_label() -> None:
    batch = collect(enough(event="purchase"), LABELS, ContinualSettings())
    assert {(one.text, one.label, one.weight) for one in batch.examples} == {("some drip", "Shirts", 3.0)}
    assert (batch.read, batch.until, len(batch.examples)) == (10, 10, 10)
    assert batch.labels["Shirts"].used


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"event": "impression"}, "impressions"),
        ({"event": "rating", "value": 3.9}, "ratings below the positive one"),
        ({"instruction": " \n"}, "without an instruction"),
        ({"item_id": "gone"}, "of items that the catalogue lacks"),
    ],
)
def test_what_does_not_count_is_counted_under_its_reason(changed: dict[str, object], reason: str) -> None:
    batch = collect(enough(**changed), LABELS, ContinualSettings())
    assert (batch.examples, dict(batch.unused)) == ((), {reason: 10})


def test_a_kind_of_event_that_weighs_nothing_is_left_out() -> None:
    settings = ContinualSettings.read({"weights": {"click": 0}})
    assert collect(enough(), LABELS, settings).unused == {"kinds of event that weigh nothing": 10}


def test_one_person_cannot_teach_a_label_however_often_they_click() -> None:
    alone = [event(number, user_hash="one", instruction=f"drip {number}") for number in range(1, 500)]
    batch = collect(alone, LABELS, ContinualSettings())
    assert batch.examples == ()
    assert (batch.labels["Shirts"].events, batch.labels["Shirts"].people, batch.labels["Shirts"].used) == (
        499,
        1,
        False,
    )


def test_one_person_among_many_weighs_no_more_than_allowed() -> None:
    loud = [event(number, user_hash="loud", item_id="hat-1", instruction=f"drip {number}") for number in range(1, 300)]
    others = [event(number, item_id="hat-1") for number in range(300, 310)]
    batch = collect([*loud, *others], LABELS, ContinualSettings(person_weight=5))
    assert sum(one.weight for one in batch.examples if one.person == "loud") == pytest.approx(5)
    assert batch.capped == 1


def test_the_same_words_of_one_person_count_once_with_the_greater_weight() -> None:
    twice = [event(1, user_hash="a", instruction="Some  DRIP"), event(2, user_hash="a", event="purchase")]
    batch = collect([*twice, *(event(number) for number in range(3, 10))], LABELS, ContinualSettings())
    assert batch.unused == {"the same person, words and label once more": 1}
    assert [one.weight for one in batch.examples if one.person == "a"] == [3.0]


events = st.builds(
    event,
    sequence=st.just(0),
    event=st.sampled_from(["impression", "click", "add", "purchase", "rating"]),
    item_id=st.sampled_from([*LABELS, "gone"]),
    value=st.floats(-1e6, 1e6),
    user_hash=st.none() | st.sampled_from("abcdef"),
    instruction=st.sampled_from(["", "drip", "Drip ", "fit"]) | st.text(max_size=20),
)


@given(st.lists(events, max_size=80), st.integers(1, 6), st.integers(1, 3), st.floats(0.1, 10))
def test_whatever_comes_is_bounded_and_accounted_for(
    rows: list[StoredEvent], label_events: int, label_people: int, person_weight: float
) -> None:
    numbered = [StoredEvent(**{**vars(row), "sequence": number}) for number, row in enumerate(rows, start=1)]
    settings = ContinualSettings(
        label_events=label_events,
        label_people=label_people,
        person_weight=person_weight,
        anonymous_weight=person_weight,
    )
    batch = collect(iter(numbered), LABELS, settings)
    assert batch.read == len(rows) == len(batch.examples) + sum(batch.unused.values())
    assert batch.until == (len(rows) or None)
    totals, sides = defaultdict(float), defaultdict(set)
    for one in batch.examples:
        assert one.weight > 0
        assert one.text.strip()
        assert batch.labels[one.label].used
        totals[one.person] += one.weight
        if one.person:
            sides[one.person].add(one.held_out)
    assert all(total <= person_weight * 1.000001 for total in totals.values())
    assert all(len(side) == 1 for side in sides.values()), "nobody is both learned from and measured on"
    for count in batch.labels.values():
        assert count.used == (count.events >= label_events and count.people >= label_people)
