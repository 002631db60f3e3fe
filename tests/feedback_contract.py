"""What every store has to do, whatever database it is.

Run on SQLite by the unit tests, on PostgreSQL by the integration tests; both give a `location` of a store that does not
exist yet.
"""

import threading
import time
from collections import Counter

import pytest
from sqlalchemy import create_engine, select, update

from feedback.erasure import erase_older_than, erase_people, people_with_events
from feedback.errors import StoreError
from feedback.events import Event
from feedback.location import Location
from feedback.reader import FeedbackReader
from feedback.schema import events, meta
from feedback.store import FeedbackStore

NOW = 1_790_000_000_000


def an_event(event_id: str, **changed: object) -> Event:
    given = {"domain": "shop", "event": "click", "item_id": "sku-1", "value": 1.0, "timestamp": NOW, **changed}
    return Event(event_id=event_id, **given)  # type: ignore[arg-type]


def raw(location: Location):
    """The store's own rows, below the reader."""
    engine = create_engine(location.url())
    with engine.connect() as connection:
        rows = connection.execute(select(events).order_by(events.c.sequence)).mappings().all()
    engine.dispose()
    return rows


def test_what_is_written_is_read_back(location):
    written = an_event(
        "e-1",
        event="rating",
        value=4.5,
        request_id="r-1",
        user_id="anna",
        instruction="a blue shirt 🙂 für mich",
        release="12",
    )
    store = FeedbackStore(location)
    assert store.write([written]) == [True]
    with FeedbackReader(location) as reader:
        [read] = reader.events("shop")
    for name in ("event_id", "domain", "event", "item_id", "value", "request_id", "instruction", "release"):
        assert getattr(read, name) == getattr(written, name), name
    assert read.timestamp == NOW / 1_000
    assert read.received > 1.7e9
    assert read.user_hash is not None
    store.close()


def test_an_event_is_stored_once(location):
    store = FeedbackStore(location)
    assert store.write([an_event("a"), an_event("b"), an_event("a", item_id="other")]) == [True, True, False]
    assert store.write([an_event("b"), an_event("c")]) == [False, True]
    assert store.write([an_event("a", domain="elsewhere")]) == [False]
    other = FeedbackStore(location)
    assert other.write([an_event("c"), an_event("d")]) == [False, True]
    assert [row["event_id"] for row in raw(location)] == ["a", "b", "c", "d"]
    assert raw(location)[0]["item_id"] == "sku-1", "the first stays"
    store.close()
    other.close()


def test_more_events_than_fit_one_query(location):
    store = FeedbackStore(location)
    many = [an_event(f"e-{number}") for number in range(1_300)]
    assert store.write(many) == [True] * 1_300
    assert store.write([*many, an_event("new")]) == [False] * 1_300 + [True]
    store.close()


def test_people_are_hashed_and_words_are_masked(location):
    store = FeedbackStore(location)
    store.write(
        [
            an_event("a", user_id="anna@example.com", instruction="mail anna@example.com, card 4111 1111 1111 1111"),
            an_event("b", user_id="anna@example.com"),
            an_event("c", user_id="bert"),
            an_event("d"),
        ]
    )
    rows = raw(location)
    assert "anna" not in str(rows)
    assert "bert" not in str(rows)
    assert "1111" not in str(rows)
    assert rows[0]["instruction"] == "mail [email], card [card]"
    hashes = [row["user_hash"] for row in rows]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[3] is None
    store.close()


def test_a_probe_is_answered_and_not_stored(location):
    store = FeedbackStore(location)
    assert store.write([an_event("p", event="probe"), an_event("a"), an_event("p")]) == [False, True, True]
    assert store.write([]) == []
    assert [row["event_id"] for row in raw(location)] == ["a", "p"]
    store.close()


def test_the_watermark_finds_what_is_new(location):
    store = FeedbackStore(location)
    store.write([an_event(f"{number}", domain="shop" if number % 2 else "films") for number in range(2_500)])
    with FeedbackReader(location) as reader:
        until = reader.watermark()
        store.write([an_event("late"), an_event("later")])
        first = list(reader.events("shop", until=until))
        assert [one.event_id for one in first] == [f"{number}" for number in range(1, 2_500, 2)]
        assert [one.event_id for one in reader.events("shop", after=until)] == ["late", "later"]
        assert not list(reader.events("shop", after=reader.watermark()))
        assert not list(reader.events("music"))
        counts = {(count.domain, count.event): count.events for count in reader.counts()}
        assert counts == {("films", "click"): 1_250, ("shop", "click"): 1_252}
    store.close()


def test_a_reader_never_misses_what_concurrent_writers_commit(location):
    """Sequence numbers are in the order of commits, or a reader would go past one that is committed later."""
    FeedbackStore(location).write([])
    stores = [FeedbackStore(location) for _ in range(3)]

    def write(number: int) -> None:
        for batch in range(15):
            stores[number].write([an_event(f"{number}-{batch}-{row}") for row in range(3)])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for one in writers:
        one.start()
    seen: list[str] = []
    watermark = 0
    with FeedbackReader(location) as reader:
        while any(one.is_alive() for one in writers) or watermark < reader.watermark():
            for one in reader.events("shop", after=watermark):
                seen.append(one.event_id)
                watermark = one.sequence
    for one in (*writers, *stores):
        one.join() if isinstance(one, threading.Thread) else one.close()
    assert Counter(seen) == Counter(
        f"{number}-{batch}-{row}" for number in range(3) for batch in range(15) for row in range(3)
    )


@pytest.mark.parametrize(("name", "message"), [("schema_version", "schema version 99"), ("user_key", "another key")])
def test_a_store_of_another_version_or_key_is_refused(location, name, message):
    FeedbackStore(location).write([an_event("a")])
    engine = create_engine(location.url())
    with engine.begin() as connection:
        connection.execute(update(meta).where(meta.c.name == name).values(value="99"))
    with pytest.raises(StoreError, match=message):
        FeedbackStore(location).write([an_event("b")])
    if name == "schema_version":
        with pytest.raises(StoreError, match=message):
            FeedbackReader(location)
    engine.dispose()
    assert len(raw(location)) == 1


def test_a_persons_events_are_erased_and_nobody_elses(location):
    store = FeedbackStore(location)
    store.write([an_event(f"{row}", user_id=("anna", "bert", "")[row % 3], domain="ab"[row % 2]) for row in range(12)])
    assert people_with_events(location, ["anna", "bert", "carl", ""]) == 2
    assert erase_people(location, ["anna", "carl", ""]) == 4
    assert people_with_events(location, ["anna", "bert"]) == 1
    assert erase_people(location, ["anna"]) == 0
    left = [row["event_id"] for row in raw(location)]
    assert left == [f"{row}" for row in range(12) if row % 3], "nobody in particular is nobody to erase"
    assert store.write([an_event("0", user_id="anna"), an_event("1")]) == [True, False], "an erased id is free again"
    store.close()


def test_what_is_too_old_is_erased_by_when_it_came(location, monkeypatch):
    store = FeedbackStore(location)
    store.write([an_event("old", timestamp=NOW)])
    now = time.time()
    monkeypatch.setattr("feedback.store.time.time", lambda: now + 60 * 86_400)
    store.write([an_event("new", timestamp=NOW)])
    monkeypatch.setattr("feedback.erasure.time.time", lambda: now + 90.5 * 86_400)
    assert erase_older_than(location, 90) == 1
    assert [row["event_id"] for row in raw(location)] == ["new"]
    store.close()


def test_whoever_has_read_goes_on_where_they_were_after_an_erasure(location, monkeypatch):
    """Also where the newest events are gone: their numbers are never used again."""
    monkeypatch.setattr("feedback.erasure.SEQUENCES_AT_ONCE", 4)
    monkeypatch.setattr("feedback.erasure.PEOPLE_AT_ONCE", 2)
    store = FeedbackStore(location)
    store.write([an_event(f"{row}", user_id=f"u-{row}") for row in range(10)])
    with FeedbackReader(location) as reader:
        seen = reader.watermark()
        assert erase_people(location, [f"u-{row}" for row in range(3, 10)]) == 7
        assert reader.watermark() == seen
        assert erase_older_than(location, 0) == 3
        assert erase_older_than(location, 0) == 0
        assert reader.watermark() == seen
        assert not list(reader.events("shop", after=0))
        store.write([an_event("next")])
        assert [one.event_id for one in reader.events("shop", after=seen)] == ["next"]
        assert reader.watermark() > seen
        assert erase_older_than(location, 0) == 1
        assert reader.watermark() > seen
    store.close()


def test_an_erasure_with_another_key_is_refused(location):
    FeedbackStore(location).write([an_event("a", user_id="anna")])
    location.key_file.write_text("k" * 40)
    with pytest.raises(StoreError, match="another key"):
        erase_people(location, ["anna"])
    location.key_file.unlink()
    with pytest.raises(StoreError, match=r"key of user ids.*cannot be read"):
        erase_people(location, ["anna"])
    assert not location.key_file.exists()
    assert len(raw(location)) == 1
    assert erase_older_than(location, 0) == 1, "which needs no key"


def test_nobody_waits_while_somebodys_words_are_masked(location, monkeypatch):
    first, other = FeedbackStore(location), FeedbackStore(location)
    first.write([an_event("before")])
    other.write([])
    stored = []

    def mask(text: str) -> str:
        if text == "long":
            stored.extend(other.write([an_event("b")]))
        return text

    monkeypatch.setattr("feedback.store.mask", mask)
    assert first.write([an_event("a", instruction="long")]) == [True]
    assert stored == [True]
    first.close()
    other.close()
