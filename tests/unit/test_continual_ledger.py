"""The watermark: what counts as learned after rollbacks, long use, removed runs, other commands and fresh trainings."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from continual_helpers import LENIENT, Shop, tune

from continual.errors import ContinualError
from continual.ledger import Attempt, Ledger, Outcome, gone_back_from
from continual.lineage import learned_until, trained_run
from continual.old_skill import open_old_skill
from continual.settings import ContinualSettings
from feedback.location import Location
from serving.journal import Publication
from serving.releases import Release
from training.derived_run import derive_run
from training.run import Run
from training.run_listing import root_of


def attempt(outcome: Outcome, since: int, until: int, **more: object) -> Attempt:
    given = {"at": "2026-01-01T00:00:00+00:00", "base_run": "A", "root": "A", "settings": "s", **more}
    return Attempt.model_validate({"outcome": outcome, "since": since, "until": until, **given})


@pytest.mark.parametrize(
    ("live", "gone"),
    [
        ([1, 2], set()),
        ([1, 2, 1], {2}),
        ([1, 2, 1, 2], set()),
        ([1, 2, 1, 3], {2}),
        ([1, 2, 3, 1], {2, 3}),
        ([1, 2, 1, 2, 3], set()),
    ],
)
def test_what_was_gone_back_from_is_what_an_older_release_took_the_place_of(live: list[int], gone: set[int]) -> None:
    published = [Publication(at="now", release=number, before=None, verb="deploy") for number in live]
    assert gone_back_from(published) == gone


def test_what_decides_the_watermark_outlives_any_number_of_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continual.ledger.KEPT", 3)
    ledger = Ledger(tmp_path / "shop.json")
    ledger.add(attempt("released", 0, 5_000, run_id="B", release=2))
    for turn in range(10):
        ledger.add(attempt("nothing usable", 5_000, 5_001 + turn))
    assert ledger.watermark(0, ["A"], "A", {2}) == 5_000, "what was gone back from"
    assert [one.until for one in ledger.attempts()] == [5_000, 5_008, 5_009, 5_010]
    ledger.add(attempt("set", 6_000, 6_000))
    for turn in range(10):
        ledger.add(attempt("refused", 6_000, 6_001 + turn, reason="worse"))
    assert ledger.watermark(0, ["A"], "A", set()) == 6_000, "and what a person left out"


def test_what_was_left_behind_is_read_again_by_another_training_and_what_a_person_left_out_is_not(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "shop.json")
    ledger.add(attempt("set", 300, 300))
    ledger.add(attempt("set", 20_000, 20_000, reason="of items that the catalogue lacks"))
    assert ledger.watermark(0, ["A"], "A", set()) == 20_000
    assert ledger.watermark(0, ["R"], "R", set()) == 300


def live_turns(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[Release]:
    """Releases 2 and 3, made live one after the other: each has learned 40 events more, and the last is gone back."""
    releases = []
    for phrase, item in (("drip", "id-hat1"), ("kicks", "id-shoe1")):
        shop.send(40, phrase, item)
        release = shop.tuner(*LENIENT).turn().release
        assert release is not None
        shop.make_live(release, monkeypatch)
        releases.append(release)
    shop.make_live(releases[0], monkeypatch)
    return releases


def run_of(shop: Shop, release: Release) -> Run:
    return Run.open(shop.run.path.parent / release.manifest.run_id)


def remove(*runs: Run) -> None:
    for run in runs:
        shutil.rmtree(run.path)


def test_runs_that_were_removed_do_not_bring_back_what_was_gone_back_from(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_turns(taught_shop, monkeypatch)
    trained = trained_run(taught_shop.run)
    assert trained is not None
    assert taught_shop.tuner().turn().line == "no feedback since event 80: nothing to learn"
    remove(trained)
    assert taught_shop.tuner().turn().line == "no feedback since event 80: nothing to learn"
    taught_shop.send(40, "fit", "id-shirt1")
    assert taught_shop.tuner(*LENIENT).turn().release is not None
    said = f"nothing is held against drift_budget: the trained run {trained.run_id} is gone"
    assert said in taught_shop.lines, "without it nothing says what all turns together have lost"


def test_the_trained_run_is_found_where_those_between_are_gone(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = live_turns(taught_shop, monkeypatch)
    remove(taught_shop.run)
    skill = open_old_skill(run_of(taught_shop, release), release, taught_shop.var, ContinualSettings())
    assert skill.trained is not None
    assert taught_shop.tuner().turn().line == "no feedback since event 80: nothing to learn"


def test_a_newer_catalogues_run_knows_what_its_removed_parents_learned(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = live_turns(taught_shop, monkeypatch)
    tuned = run_of(taught_shop, release)
    runs = [tuned]
    for _ in range(2):
        items = runs[-1].catalogue()[:-1]
        vectors = runs[-1].item_vectors()[:-1]
        runs.append(derive_run(runs[-1], taught_shop.var, reason="catalogue", catalogue=items, item_vectors=vectors))
    remove(*runs[:-1])
    assert root_of(runs[-1]) == root_of(taught_shop.run)
    assert learned_until(runs[-1]) == 40


def test_a_release_published_over_one_that_it_was_not_derived_from_brings_that_ones_feedback_back(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by hand: `make deploy` of what a newer catalogue was made into while a tuned release went live."""
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    weight, bias = taught_shop.run.head()
    untaught = derive_run(taught_shop.run, taught_shop.var, reason="other", head=(weight, bias + np.float32(0.01)))
    taught_shop.make_live(taught_shop.export(untaught), monkeypatch)
    assert taught_shop.tuner().turn().release is not None


def test_a_tuning_that_another_command_overtook_stops_before_a_deploy(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    weight, bias = taught_shop.run.head()
    other = derive_run(taught_shop.run, taught_shop.var, reason="other", head=(weight, bias + np.float32(0.01)))
    export = taught_shop.export

    def overtaken(run: Run, before: Release | None = None) -> Release:
        made = export(run, before)
        taught_shop.make_live(export(other), monkeypatch)
        return made

    monkeypatch.setattr(taught_shop, "export", overtaken)
    taught_shop.send(40, "drip", "id-hat1")
    stopped = tune(taught_shop)
    assert stopped.exit_code == 1
    assert stopped.output.splitlines()[-1] == (
        "Error: release 2: it was made to follow release 1, but release 3 is live by now: it was left alone; "
        "run `make tune` again, which starts from what answers"
    )
    monkeypatch.setattr(taught_shop, "export", export)
    again = tune(taught_shop)
    assert (again.exit_code, "release 4 has learned from" in again.output) == (0, True)


def test_after_an_older_store_was_brought_back_what_comes_next_is_learned(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/feedback.md says: numbers are given once more, and without `SINCE` these events would be skipped."""
    store = Location.below(taught_shop.var).file
    taught_shop.send(30, "drip", "id-hat1")
    backup = shutil.copy(store, taught_shop.var / "backup.sqlite")
    taught_shop.send(40, "drip", "id-hat1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    shutil.copy(backup, store)
    with pytest.raises(ContinualError, match="event 70 is learned, but the store ends with event 30"):
        taught_shop.tuner().turn()
    assert taught_shop.tuner().turn(since=30).line == "no feedback since event 30: nothing to learn"
    taught_shop.send(50, "kicks", "id-shoe1")
    third = taught_shop.tuner().turn().release
    assert third is not None
    origin = run_of(taught_shop, third).manifest.derived_from
    assert origin is not None
    assert (origin.details["since"], origin.details["until"]) == (30, 80)
