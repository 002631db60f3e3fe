"""The canary in the live repository, and what evidence says of it."""

import datetime
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from serving_helpers import build_release

from feedback.reader import StoredEvent
from serving.canary.ensemble import canaries, new_canary, read_canary, remove_canary, with_share, write_canary
from serving.canary.evidence import FeedbackOfBoth, Requests, sort_events
from serving.canary.journal import CanaryJournal
from serving.canary.verdict import Judgement, Outcome, Verdict, judge_errors, judge_feedback, judge_latency
from serving.errors import PublishError
from serving.gates.latency import LatencyComparison
from serving.gates.settings import CanarySettings
from serving.live_repository import LiveRepository
from serving.releases import Release

SETTINGS = CanarySettings()


@pytest.fixture
def repository(tmp_path: Path) -> LiveRepository:
    return LiveRepository(tmp_path / "live")


@pytest.fixture
def release(tmp_path: Path) -> Callable[[int], Release]:
    def build(number: int) -> Release:
        folder = tmp_path / "releases"
        if (folder / str(number)).is_dir():
            return Release(folder / str(number))
        return build_release(folder, number, {"tokenizer": (1, "same"), "head": (number, f"head {number}")})

    return build


def put_in(repository: LiveRepository, release: Release, *, canary: bool = False) -> None:
    repository.stage(release)
    if canary:
        write_canary(repository, new_canary(release, 0.1, ("task",), Requests(7, 1, 2.5)), release)
    else:
        repository.switch(release)
    repository.confirm(release.manifest.domain)


def versions(repository: LiveRepository, model: str) -> set[str]:
    return {path.name for path in (repository.folder / model).iterdir() if path.is_dir()}


def test_a_canary_is_beside_the_domain_and_no_domain(repository: LiveRepository, release: Callable) -> None:
    assert read_canary(repository, "shop") is None
    put_in(repository, release(1))
    put_in(repository, release(2), canary=True)
    assert repository.domains() == ["shop"]
    assert repository.ensembles() == ["shop", "shop_canary"]
    found = read_canary(repository, "shop")
    assert found is not None
    assert (found.release, found.share, found.forced, found.model) == (2, 0.1, ("task",), "shop_canary")
    assert found.live_before == Requests(7, 1, 2.5)
    assert list(canaries(repository)) == [found]
    live = repository.live_release("shop")
    assert live is not None
    assert live.number == 1
    write_canary(repository, with_share(found, 0.5, Requests(9, 1, 2.5)), release(2))
    changed = read_canary(repository, "shop")
    assert changed is not None
    assert (changed.share, changed.live_before) == (0.5, Requests(9, 1, 2.5))


def test_what_a_canary_pins_is_kept_until_it_is_gone(repository: LiveRepository, release: Callable) -> None:
    put_in(repository, release(1))
    put_in(repository, release(2), canary=True)
    for number in (3, 4):
        put_in(repository, release(number))
        live = repository.live_release("shop")
        assert live is not None
        repository.retire("shop", [live])
    assert versions(repository, "shop_head") == {"2", "3", "4"}, "release 1 is gone, the canary's step is not"
    assert read_canary(repository, "shop") is not None
    repository.discard(release(2))
    assert versions(repository, "shop_head") == {"2", "3", "4"}, "pinned: nothing to discard"

    remove_canary(repository, "shop", None)
    remove_canary(repository, "shop", None)  # once more is fine
    assert repository.ensembles() == ["shop"]
    repository.discard(release(2))
    assert versions(repository, "shop_head") == {"3", "4"}
    assert not [path for path in repository.folder.iterdir() if path.name.startswith(".")]


def test_what_only_looks_like_a_canary_keeps_nobody_from_anything(
    repository: LiveRepository, release: Callable
) -> None:
    put_in(repository, release(1))
    put_in(repository, release(2), canary=True)
    config = repository.folder / "shop_canary" / "config.pbtxt"
    config.write_text(config.read_text().replace("canary_share", "canary_chair"))
    with pytest.raises(PublishError, match="is no canary of shop"):
        read_canary(repository, "shop")
    assert list(canaries(repository)) == []


def test_the_journal_says_how_it_ended(tmp_path: Path) -> None:
    journal = CanaryJournal(tmp_path / "journal" / "shop.canary.jsonl")
    assert journal.events() == []
    journal.write(2, "up", 0.1)
    journal.path.write_bytes(journal.path.read_bytes() + b'{"at": "cut of')
    journal.write(2, "dropped", 0.1, "errors: many")
    assert [(one.action, one.reason) for one in journal.events()] == [("up", ""), ("dropped", "errors: many")]


def test_the_journal_knows_what_was_sent_to_measure(tmp_path: Path) -> None:
    journal = CanaryJournal(tmp_path / "shop.canary.jsonl")
    journal.path.write_text('{"at": "2026-01-01T00:00:00+00:00", "release": 2, "action": "up", "share": 0.1}\n')
    journal.write(2, "measured", 0.1, requests=43)
    journal.write(3, "measured", 0.1, requests=43)
    began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
    assert journal.sent(2, began) == (43, 0)
    journal.write(2, "measured", 0.1, failures=7)
    assert journal.sent(2, began) == (43, 7)
    assert journal.sent(2, began + datetime.timedelta(hours=1)) == (0, 0)


def stored(
    release: str, event: str, user: str | None, received: float = 10.0, *, item: str = "i", request: str = ""
) -> StoredEvent:
    return StoredEvent(
        sequence=1,
        event_id="e",
        domain="shop",
        event=event,
        item_id=item,
        value=1.0,
        timestamp=received,
        received=received,
        user_hash=user,
        instruction="",
        request_id=request,
        release=release,
    )


def people(release: str, count: int, rate: float, *, shown: int = 10) -> Iterable[StoredEvent]:
    for person in range(count):
        for turn in range(shown):
            yield stored(release, "impression", f"{release}-{person}")
            if turn < round(shown * rate):
                yield stored(release, "click", f"{release}-{person}")
    for person in range(count // 10):  # some spread, the same on both sides
        yield stored(release, "click", f"{release}-{person}")


def clicks(*events: StoredEvent) -> FeedbackOfBoth:
    return sort_events(events, live=1, canary=2, event="click", since=5.0)


def test_feedback_is_sorted_by_release_and_person() -> None:
    found = clicks(
        stored("1", "impression", "anna"),
        stored("1", "click", "anna"),
        stored("1", "purchase", "anna"),
        stored("2", "impression", "bert"),
        stored("2", "impression", "bert"),
        stored("1", "click", "dora"),
        stored("1", "impression", None),
        stored("1", "impression", "emil", received=1.0),
        stored("3", "impression", "emil"),
    )
    assert found.live.columns() == ([1], [1]), "not dora, to whom nothing was shown"
    assert found.canary.columns() == ([0], [2])
    assert (found.of_both, found.of_nobody, found.not_shown) == (0, 1, 1)


def test_a_success_counts_if_its_impression_came_in_since() -> None:
    before = stored("1", "impression", "anna", received=1.0, item="early")
    late = stored("1", "click", "anna", item="early")
    shown = stored("1", "impression", "anna")
    found = clicks(before, shown, late)
    assert found.live.columns() == ([0], [1])
    assert found.not_shown == 1
    found = clicks(before, shown, stored("1", "impression", "anna", item="early"), late)
    assert found.live.columns() == ([1], [2]), "it was shown again"
    found = clicks(stored("1", "impression", "anna", request="r"), stored("1", "click", "anna", item="j", request="r"))
    assert found.live.columns() == ([1], [1]), "one impression a request is enough"
    assert clicks(shown, stored("1", "click", "bert")).not_shown == 1, "somebody else's"


def test_who_met_both_is_of_the_release_they_met_more() -> None:
    """Who comes often meets both most easily, just after a share was changed: to leave them out would be a choice."""
    often = [stored("2", "impression", "carl", item=str(turn)) for turn in range(9)]
    found = clicks(stored("1", "impression", "carl", item="a"), *often, stored("1", "click", "carl", item="a"))
    assert (found.canary.columns(), found.live.columns(), found.of_both) == (([1], [10]), ([], []), 1)


def test_clients_that_send_no_impressions_are_told_so() -> None:
    events = [stored("1", "click", f"person-{number}") for number in range(200)]
    said = judge_feedback(clicks(*events), SETTINGS)
    assert said.outcome is Outcome.WAIT
    assert said.words.startswith("0 people with an impression in the smaller group, 100 are needed")
    assert "200 of which no impression has come in since" in said.words


def judged(live: float, canary: float, count: int) -> Judgement:
    events = [*people("1", count, live), *people("2", count, canary)]
    return judge_feedback(sort_events(events, live=1, canary=2, event="click", since=0), SETTINGS)


def test_feedback_decides_both_ways_and_waits_in_between() -> None:
    assert judged(0.3, 0.3, 2_000).outcome is Outcome.PROMOTE
    assert judged(0.3, 0.4, 300).outcome is Outcome.PROMOTE
    assert judged(0.3, 0.1, 300).outcome is Outcome.DROP
    few = judged(0.3, 0.0, 99)
    assert few.outcome is Outcome.WAIT
    assert "99 people with an impression in the smaller group, 100 are needed" in few.words
    assert judged(0.0, 0.0, 100).outcome is Outcome.WAIT
    assert judge_feedback(None, SETTINGS).outcome is Outcome.WAIT


def test_errors_decide_both_ways() -> None:
    fine, none = Requests(5_000, 0, 8.0), Requests(0, 0, 0.0)
    assert judge_errors(fine, fine, SETTINGS).outcome is Outcome.PROMOTE
    assert judge_errors(fine, Requests(300, 30, 8.0), SETTINGS).outcome is Outcome.DROP
    assert judge_errors(fine, Requests(20, 0, 8.0), SETTINGS).outcome is Outcome.WAIT
    assert judge_errors(fine, none, SETTINGS).outcome is Outcome.WAIT
    bad = Requests(90_000, 4_000, 8.0)
    assert judge_errors(bad, bad, SETTINGS).outcome is Outcome.PROMOTE, "as bad as the live one is no reason to drop it"


def test_a_verdict_drops_for_one_reason_and_promotes_for_all() -> None:
    good, bad, unclear = (
        Judgement("errors", Outcome.PROMOTE, "few"),
        Judgement("latency", Outcome.DROP, "slow"),
        Judgement("feedback", Outcome.WAIT, "little"),
    )
    assert Verdict((good, good)).outcome is Outcome.PROMOTE
    assert Verdict((good, unclear)).outcome is Outcome.WAIT
    dropped = Verdict((good, bad, unclear))
    assert dropped.outcome is Outcome.DROP
    assert dropped.reason() == "latency: slow"


def test_latency_waits_where_nothing_can_be_compared() -> None:
    counts = Requests(10, 0, 5.0)
    assert judge_latency(None, counts, counts).outcome is Outcome.WAIT
    for ratio, outcome in ((1.0, Outcome.PROMOTE), (9.0, Outcome.DROP)):
        assert (
            judge_latency(LatencyComparison((5.0,) * 40, (5.0 * ratio,) * 40, 2.0), counts, counts).outcome is outcome
        )
