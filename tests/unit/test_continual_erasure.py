"""Feedback that is erased after a turn has read it: what was tried with it is no longer what would be tried now."""

import pytest
from continual_helpers import STUBBORN, Shop, tune

from continual.errors import RefusedError
from feedback.erasure import erase_people
from feedback.location import Location
from serving.releases import Release
from training.run import Run


def erase(shop: Shop, *people: str) -> None:
    assert erase_people(Location.below(shop.var), people)


def events_of(shop: Shop, release: Release) -> int:
    """How many events a release's turn read."""
    origin = Run.open(shop.run.path.parent / release.manifest.run_id).manifest.derived_from
    assert origin is not None
    return int(origin.details["events"])


def test_what_was_refused_for_people_who_are_erased_is_tried_again(taught_shop: Shop) -> None:
    for word in ("hat", "shirt"):
        taught_shop.send(60, word, "id-shoe1", person=lambda number: f"spam {number}")
    taught_shop.send(40, "drip", "id-hat1")
    with pytest.raises(RefusedError):
        taught_shop.tuner(*STUBBORN).turn()
    assert "up to which nothing came of it" in taught_shop.tuner(*STUBBORN).turn().line
    erase(taught_shop, *(f"spam {number}" for number in range(60)))
    assert taught_shop.tuner(*STUBBORN).turn().release is not None


def test_a_release_that_waits_is_not_made_live_with_what_was_erased_since(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    assert taught_shop.tuner().turn().release is not None
    erase(taught_shop, "1", "2", "3")
    turn = taught_shop.tuner().turn()
    assert turn.waiting is None
    assert turn.release is not None
    assert events_of(taught_shop, turn.release) == 37
    erase(taught_shop, *map(str, range(40)))
    stopped = tune(taught_shop)
    assert stopped.exit_code == 1, "else a `deploy` would make release 3 live"
    assert "release 1 answers, which is not the newest, 3: stopped here" in stopped.output


def test_a_run_whose_turn_was_killed_is_not_found_again_where_something_was_erased_since(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(40, "drip", "id-hat1")
    taught_shop.send(1, "no such item's words", "no such item", person=lambda _: "erased")
    taught_shop.send(1, "another's", "no such item", person=lambda _: "stays")
    taught_shop.fail_after_export = True
    with pytest.raises(KeyboardInterrupt):
        taught_shop.tuner().turn()
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.fail_after_export = False
    erase(taught_shop, "erased")
    release = taught_shop.tuner().turn().release
    assert release is not None
    assert events_of(taught_shop, release) == 41
