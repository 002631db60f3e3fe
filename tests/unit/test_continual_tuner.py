"""One turn of the loop, from the store to the watermark, and what happens where it is cut off or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from continual_helpers import LENIENT, STUBBORN, Shop, WordEncoder, tune, words_as_vectors

from continual.command import main, only_one
from continual.errors import ContinualError, LedgerError, RefusedError
from continual.head_update import HeadWeights
from continual.old_skill import open_old_skill
from continual.remembered import read_remembered
from continual.settings import ContinualSettings
from feedback.erasure import erase_older_than
from feedback.location import Location
from serving.canary.journal import CanaryJournal
from serving.releases import Release
from training.run import Run

STIFF = "continual.penalties=[0.003]"
"""Eight validation texts are too few to choose by how stiff a head has to be."""


def runs_of(shop: Shop) -> list[Path]:
    return sorted((shop.var / "runs" / "shop").iterdir())


def best_label(shop: Shop, release: Release, text: str) -> str:
    run = Run.open(shop.var / "runs" / "shop" / release.manifest.run_id)
    return run.labels[HeadWeights(*run.head()).best_labels(words_as_vectors([text]))[0]]


def test_feedback_becomes_a_release_that_knows_the_phrase(taught_shop: Shop) -> None:
    taught_shop.send(40, "drip", "id-shoe1")
    assert best_label(taught_shop, taught_shop.release, "show me a drip") != "Shoes"
    turn = taught_shop.tuner().turn()
    assert turn.release is not None
    assert turn.release.number == 2
    assert best_label(taught_shop, turn.release, "show me a drip") == "Shoes"
    assert [best_label(taught_shop, turn.release, f"I want a {word}") for word in ("hat", "shirt", "shoe")] == [
        "Hats",
        "Shirts",
        "Shoes",
    ]
    run = Run.open(taught_shop.var / "runs" / "shop" / turn.release.manifest.run_id)
    origin = run.manifest.derived_from
    assert origin is not None
    assert (origin.run_id, origin.reason, origin.details["until"]) == (taught_shop.run.run_id, "continual tuning", 40)
    assert origin.details["labels"] == {"Shoes": {"events": 40, "people": 40, "used": True}}
    assert run.manifest.metrics["continual"]["until"] == 40
    report = (run.path / "continual.md").read_text(encoding="utf-8")
    assert "**Taken.**" in report
    assert "| Shoes | 40 | 40 | yes |" in report
    assert "drip" not in report, "a report holds no one's words"
    assert {one.label for one in read_remembered(run)} == {"Shoes"}
    assert run.instructions() == taught_shop.run.instructions(), "people's words stay out of what goes into a release"


def test_only_the_training_instructions_that_are_drawn_are_embedded(taught_shop: Shop) -> None:
    run = taught_shop.run
    skill = open_old_skill(run, taught_shop.release, taught_shop.var, ContinualSettings(replay=3))
    again = open_old_skill(run, taught_shop.release, taught_shop.var, ContinualSettings(replay=3))
    held_out = [one.text for one in run.instructions() if one.split != "train"]
    assert isinstance(skill.encoder, WordEncoder)
    assert skill.encoder.embedded == [*(one.text for one in skill.train), *held_out]
    assert (len(skill.train), len(skill.replay)) == (3, 3 + 12), "and five items a label at most, of four"
    assert again.train == skill.train
    assert all(one in run.instructions("train") for one in skill.train)


def test_nothing_new_is_one_line(taught_shop: Shop) -> None:
    with pytest.raises(ContinualError, match="there is no feedback yet"):
        taught_shop.tuner().turn()
    taught_shop.send(40, "drip", "id-hat1")
    taught_shop.tuner().turn()
    before = runs_of(taught_shop)
    assert taught_shop.tuner().turn().line == "no feedback since event 40: nothing to learn", "release 2 is the newest"
    assert runs_of(taught_shop) == before


def test_a_release_that_never_went_live_is_made_anew_with_what_came_since(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    assert taught_shop.tuner().turn().release is not None
    assert taught_shop.tuner().turn().line == "no feedback since event 40, which release 2 has learned"
    taught_shop.send(40, "kicks", "id-shoe1")
    third = taught_shop.tuner().turn().release
    assert third is not None
    assert [best_label(taught_shop, third, f"I want a {word}") for word in ("drip", "kicks")] == ["Hats", "Shoes"]


def test_what_was_gone_back_from_is_not_learned_again(taught_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    taught_shop.make_live(taught_shop.release, monkeypatch)  # a rollback
    assert taught_shop.tuner().turn().line == "no feedback since event 40: nothing to learn"
    taught_shop.send(40, "kicks", "id-shoe1")
    third = taught_shop.tuner().turn().release
    assert third is not None
    assert best_label(taught_shop, third, "I want a kicks") == "Shoes"
    remembered = (
        taught_shop.var / "runs" / taught_shop.run.domain / third.manifest.run_id / "feedback.jsonl"
    ).read_text()
    assert "kicks" in remembered
    assert "drip" not in remembered


def test_a_later_turn_does_not_forget_what_an_earlier_one_learned(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for phrase, item in (("drip", "id-hat1"), ("kicks", "id-shoe1"), ("fit", "id-shirt1")):
        taught_shop.send(40, phrase, item)
        release = taught_shop.tuner(STIFF).turn().release
        assert release is not None
        taught_shop.make_live(release, monkeypatch)
    wanted = {"drip": "Hats", "kicks": "Shoes", "fit": "Shirts", "hat": "Hats"}
    assert {word: best_label(taught_shop, release, f"I want a {word}") for word in wanted} == wanted


def test_killed_between_export_and_watermark_it_repeats_without_making_anything_twice(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    taught_shop.fail_after_export = True
    with pytest.raises(KeyboardInterrupt):
        taught_shop.tuner().turn()
    runs, releases = runs_of(taught_shop), taught_shop.store.numbers()
    taught_shop.fail_after_export = False
    turn = taught_shop.tuner().turn()
    assert turn.release is not None
    assert (runs_of(taught_shop), taught_shop.store.numbers()) == (runs, releases), (
        "the same run and release, found again"
    )
    assert taught_shop.tuner().turn().line == "no feedback since event 40, which release 2 has learned"


def test_feedback_that_would_cost_old_skill_is_refused_and_nothing_is_made(taught_shop: Shop) -> None:
    for word in ("hat", "shirt"):  # many people say that a hat is a shoe
        taught_shop.send(60, word, "id-shoe1", person=lambda number: f"person {number}")
    runs = runs_of(taught_shop)
    with pytest.raises(
        RefusedError, match=r"refused: accuracy on old held-out instructions falls by more than 1 points"
    ):
        taught_shop.tuner("continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0").turn()
    assert (runs_of(taught_shop), taught_shop.store.numbers()) == (runs, [1])
    assert "Refused" in (taught_shop.var / "continual" / "shop-refused.md").read_text(encoding="utf-8")
    again = taught_shop.tuner("continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0").turn()
    assert again.release is None
    assert "up to which nothing came of it: accuracy on old held-out" in again.line
    lenient = taught_shop.tuner(
        "continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0", *LENIENT
    )
    assert lenient.turn().release is not None, "other settings are another attempt"


def test_a_person_can_leave_refused_feedback_out(taught_shop: Shop) -> None:
    taught_shop.send(30, "drip", "id-hat1")
    assert taught_shop.tuner().turn(since=30).line == "no feedback since event 30: nothing to learn"
    assert taught_shop.tuner().turn().line == "no feedback since event 30: nothing to learn", "it is remembered"
    assert taught_shop.tuner().turn(since=0).release is not None, "and can be taken back"


def test_what_is_of_no_use_yet_is_kept_for_later(taught_shop: Shop) -> None:
    taught_shop.send(3, "drip", "id-hat1")
    taught_shop.send(5, "drip", "no such item")
    turn = taught_shop.tuner().turn()
    assert turn.release is None
    assert turn.line.startswith("nothing to learn yet (5 of items that the catalogue lacks, 3 of labels with too few")
    taught_shop.send(30, "drip", "id-hat1", person=lambda number: f"other {number}")
    release = taught_shop.tuner().turn().release
    assert release is not None
    run = Run.open(taught_shop.var / "runs" / "shop" / release.manifest.run_id)
    assert run.manifest.derived_from is not None
    assert run.manifest.derived_from.details["labels"]["Hats"]["events"] == 33
    assert run.manifest.derived_from.details["unused"] == {"of items that the catalogue lacks": 5}


def test_more_events_than_one_head_reads_are_read_one_after_the_other(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(50, "drip", "no such item")
    taught_shop.send(40, "drip", "id-hat1")
    few = "continual.max_events=50"
    assert "left behind" in taught_shop.tuner(few).turn().line
    release = taught_shop.tuner(few).turn().release
    assert release is not None
    assert best_label(taught_shop, release, "show me a drip") == "Hats"


def test_a_refused_batch_that_is_full_does_not_stand_in_the_way_for_ever(taught_shop: Shop) -> None:
    for word in ("hat", "shirt"):
        taught_shop.send(60, word, "id-shoe1", person=lambda number: f"person {number}")
    settings = (*STUBBORN, "continual.max_events=120")
    with pytest.raises(RefusedError, match=r"These 120 events are left behind \(continual.max_events\)"):
        taught_shop.tuner(*settings).turn()
    assert taught_shop.tuner(*settings).turn().line == "no feedback since event 120: nothing to learn"
    taught_shop.send(40, "drip", "id-hat1")
    release = taught_shop.tuner("continual.max_events=120").turn().release
    assert release is not None
    assert best_label(taught_shop, release, "show me a drip") == "Hats"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r\n"])
def test_whatever_separates_lines_may_be_in_peoples_words(
    taught_shop: Shop, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(30, f"drip{separator}please", "id-shoe1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    taught_shop.send(30, "kicks", "id-shoe1")
    assert taught_shop.tuner().turn().release is not None
    remembered = read_remembered(Run.open(taught_shop.var / "runs" / "shop" / second.manifest.run_id))
    assert all(separator in one.text for one in remembered)


def test_all_turns_together_are_held_against_the_head_that_was_trained(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    skill = open_old_skill(taught_shop.run, taught_shop.release, taught_shop.var, ContinualSettings())
    assert skill.trained is not None, "its head is that of the run that was trained, not of the one that is live"
    assert not np.array_equal(skill.trained.weight, skill.head.weight)
    turn = taught_shop.tuner()
    taught_shop.send(40, "drip", "id-hat1")
    release = turn.turn().release
    assert release is not None
    run = Run.open(taught_shop.var / "runs" / "shop" / release.manifest.run_id)
    assert "| the same, since the training | " in (run.path / "continual.md").read_text(encoding="utf-8")


def test_reading_on_from_an_event_that_is_not_there_is_refused_and_not_remembered(taught_shop: Shop) -> None:
    taught_shop.send(30, "drip", "id-hat1")
    with pytest.raises(ContinualError, match="SINCE=31: the feedback store ends with event 30"):
        taught_shop.tuner().turn(since=31)
    assert taught_shop.tuner().turn().release is not None


def test_what_is_erased_after_it_was_learned_leaves_the_watermark_where_it_was(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(30, "drip", "id-shoe1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    assert erase_older_than(Location.below(taught_shop.var), 0) == 30
    assert taught_shop.tuner().turn().line == "no feedback since event 30: nothing to learn"
    taught_shop.send(30, "kicks", "id-shoe1")
    third = taught_shop.tuner().turn().release
    assert third is not None
    origin = Run.open(taught_shop.var / "runs" / "shop" / third.manifest.run_id).manifest.derived_from
    assert origin is not None
    assert (origin.details["since"], origin.details["until"]) == (30, 60)


def test_nothing_new_after_a_rollback_stops_before_a_deploy_undoes_it(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    assert tune(taught_shop).exit_code == 0
    waiting = tune(taught_shop)  # release 2 has never answered: `make tune deploy` is to make it live
    assert (waiting.exit_code, "which release 2 has learned" in waiting.output) == (0, True)
    taught_shop.make_live(taught_shop.store.latest(), monkeypatch)
    assert tune(taught_shop).exit_code == 0
    taught_shop.make_live(taught_shop.release, monkeypatch)  # a rollback
    refused = tune(taught_shop)
    assert refused.exit_code == 1
    assert "release 1 answers, which is not the newest, 2: stopped here" in refused.output


def test_what_waits_is_what_was_made_of_what_answers_and_never_a_canary(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.make_live(taught_shop.release, monkeypatch)
    taught_shop.send(40, "drip", "id-hat1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    assert taught_shop.tuner().turn().waiting == second
    CanaryJournal(taught_shop.tuner().layout.canary_journal("shop")).write(2, "dropped", 0.1)
    assert taught_shop.tuner().turn().waiting is None
    # Another release of the run that answers, as of another precision: what was made after the first is not for it.
    folder = taught_shop.store.folder / "3"
    shutil.copytree(taught_shop.release.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "release": 3}))
    taught_shop.make_live(Release(folder), monkeypatch)
    turn = taught_shop.tuner().turn()
    assert turn.waiting is None
    assert turn.release is not None


def test_items_that_say_what_is_held_out_are_not_learned_again(taught_shop: Shop) -> None:
    run, settings = taught_shop.run, ContinualSettings()
    before = len(open_old_skill(run, taught_shop.release, taught_shop.var, settings).replay)
    rows = [json.loads(line) for line in (run.path / "instructions.jsonl").read_text().splitlines()]
    item = run.catalogue()[0]
    held_out = next(row for row in rows if row["split"] == "test")
    held_out |= {"text": item.title.upper(), "label": item.label}
    (run.path / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = len(open_old_skill(Run.open(run.path), taught_shop.release, taught_shop.var, settings).replay)
    assert after == before - 1


def test_another_store_is_noticed(taught_shop: Shop) -> None:
    taught_shop.send(40, "drip", "id-hat1")
    taught_shop.tuner().turn()
    for path in (taught_shop.var / "feedback").glob("events.sqlite*"):
        path.unlink()
    taught_shop.send(10, "drip", "id-hat1")
    with pytest.raises(ContinualError, match=r"event 40 is learned, but the store ends with event 10.*SINCE=0"):
        taught_shop.tuner().turn()
    assert taught_shop.tuner().turn(since=0).line


@pytest.mark.parametrize("content", [b"", b"not JSON", b'{"schema_version": 2}', b'{"attempts": [{"at": 1}]}'])
def test_a_damaged_ledger_is_one_line_and_nothing_is_made(taught_shop: Shop, content: bytes) -> None:
    taught_shop.send(40, "drip", "id-hat1")
    (taught_shop.var / "continual").mkdir()
    (taught_shop.var / "continual" / "shop.json").write_bytes(content)
    with pytest.raises(LedgerError, match=r"shop\.json: cannot be read .*move it away"):
        taught_shop.tuner().turn()
    assert taught_shop.store.numbers() == [1]
    (taught_shop.var / "continual" / "shop.json").unlink()
    assert taught_shop.tuner().turn().release is not None


def test_a_lost_ledger_does_not_make_anything_be_learned_twice(taught_shop: Shop) -> None:
    taught_shop.send(40, "drip", "id-hat1")
    taught_shop.tuner().turn()
    (taught_shop.var / "continual" / "shop.json").unlink()
    assert taught_shop.tuner().turn().line == "no feedback since event 40: nothing to learn", "the run itself knows"


def test_a_run_that_was_trained_afresh_learns_all_feedback_again(
    taught_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_shop.send(40, "drip", "id-hat1")
    second = taught_shop.tuner().turn().release
    assert second is not None
    taught_shop.make_live(second, monkeypatch)
    fresh = taught_shop.var / "runs" / "shop" / "20270101T000000000Z-bbbbbbbb"
    shutil.copytree(taught_shop.run.path, fresh)
    manifest = json.loads((taught_shop.run.path / "run.json").read_text())
    (fresh / "run.json").write_text(json.dumps({**manifest, "run_id": fresh.name, "derived_from": None}))
    taught_shop.make_live(taught_shop.export(Run.open(fresh)), monkeypatch)
    release = taught_shop.tuner().turn().release
    assert release is not None
    assert best_label(taught_shop, release, "show me a drip") == "Hats"


def test_two_tunings_at_once_are_refused(taught_shop: Shop) -> None:
    with (
        only_one(taught_shop.tuner()),
        pytest.raises(ContinualError, match="another tuning of shop runs"),
        only_one(taught_shop.tuner()),
    ):
        pass


def test_another_users_folder_is_named_with_its_owner(taught_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    tuner, folder = taught_shop.tuner(), taught_shop.var / "continual"
    monkeypatch.setattr(Path, "open", denied)  # by mode alone nothing keeps root out
    monkeypatch.setattr("os.geteuid", lambda: 12_345)
    said = f"{folder}/shop.lock: cannot be written: Permission denied; {folder} belongs to the user"
    with pytest.raises(ContinualError, match=f"{said} .*: run this as that user"), only_one(tuner):
        pass


def test_a_wrong_setting_is_one_line(taught_shop: Shop) -> None:
    arguments = ["tune", "--config", taught_shop.config, "--var", taught_shop.var, "continual.bugdet=3"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "continual.bugdet: Extra inputs are not permitted (the section knows weights" in result.output
    arguments[-1] = "continual.budget=3"
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code, "there is no feedback yet" in result.output) == (1, True)
