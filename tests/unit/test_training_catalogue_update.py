"""A run's catalogue is brought up to date: only new texts are embedded, and likely mistakes are refused."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import items_of, made_run, vectors_of
from training_helpers import command_line, finished, without_interactions

from training.catalogue_update import compare_catalogues, update_catalogue, updated_vectors
from training.config_loading import load_config
from training.dataset import Item
from training.dataset_loading import load_items
from training.derived_run import derive_run
from training.errors import DatasetError
from training.run import Run

TEXTS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])
CATALOGUES = st.dictionaries(st.sampled_from("stuvwxyz"), st.tuples(TEXTS, st.integers(0, 2)), max_size=8).map(
    lambda rows: [Item(item_id, item_id, text, "Shirts", float(prior)) for item_id, (text, prior) in rows.items()]
)
Row = dict[str, str]
ITEMS, EVENTS = "shop/items.csv", "shop/events.csv"
LEARNED = ("history.vectors=behaviour", "history.prior=recency", "history.dimensions=4")


@given(CATALOGUES, CATALOGUES)
def test_vectors_are_those_of_a_fresh_embedding_and_only_new_texts_are_embedded(
    before: list[Item], after: list[Item]
) -> None:
    embedded: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        embedded.extend(texts)
        return vectors_of(texts)

    found = updated_vectors(before, vectors_of([item.text for item in before]), after, embed)
    np.testing.assert_array_equal(found, vectors_of([item.text for item in after]))
    assert len(embedded) == len(set(embedded))
    assert set(embedded) == {item.text for item in after} - {item.text for item in before}


@given(CATALOGUES, CATALOGUES, st.randoms())
def test_the_change_leads_from_one_catalogue_to_the_other(
    before: list[Item], after: list[Item], random: object
) -> None:
    change = compare_catalogues(before, after, ignore_priors=False)
    new = {item.item_id: item for item in after}
    made = {item.item_id: item for item in before if item.item_id not in change.removed}
    made |= {item_id: new[item_id] for item_id in (*change.added, *change.changed)}
    assert made == new
    assert not set(change.added) & {item.item_id for item in before}
    assert all(new[item_id] != item for item_id in change.changed for item in before if item.item_id == item_id)
    assert not compare_catalogues(before, before[::-1], ignore_priors=False), "the order of rows is no difference"


def test_learned_priors_are_no_difference() -> None:
    before = items_of("one", "two")
    after = [replace(item, prior=0.0) for item in before]
    assert compare_catalogues(before, after, ignore_priors=False).changed == ("id-one", "id-two")
    assert not compare_catalogues(before, after, ignore_priors=True)


def edit(data: Path, change: Callable[[list[Row]], list[Row]], file: str = ITEMS) -> None:
    path = data / file
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(change(rows))


def test_a_real_encoder_gives_what_a_fresh_embedding_gives(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = without_interactions(tiny_config)
    run = finished(command_line(config, tiny_data, tmp_path)("var"))
    lines: list[str] = []

    def update(of: Run) -> Run | None:
        return update_catalogue(of, load_config(config), tiny_data, tmp_path / "var", say=lines.append)

    assert update(run) is None
    assert "nothing to do" in lines[-1]

    def change(rows: list[Row]) -> list[Row]:
        kept = rows[2:]
        kept[0]["text"], kept[1]["prior"] = "a hat for the shoe", "4.5"
        return [*kept, {**rows[5], "id": "item-new", "text": "a black bag"}]

    edit(tiny_data, change)
    derived = update(run)
    assert derived is not None
    assert "catalogue: 1 added, 2 changed, 2 removed; 32 items before, 31 now" in lines
    assert any(line.startswith("embedded 2 texts") for line in lines)
    items = derived.catalogue()
    assert [item.item_id for item in items] == [f"item-{n}" for n in range(2, 32)] + ["item-new"]
    fresh = run.load_model().embed([item.text for item in items])
    np.testing.assert_allclose(derived.item_vectors(), fresh, atol=1e-6)
    np.testing.assert_array_equal(derived.head()[0], run.head()[0])
    assert derived.manifest.derived_from is not None
    assert derived.manifest.derived_from.details["removed"] == 2
    assert any(run.run_id in note for note in derived.manifest.metrics["notes"])

    edit(tiny_data, lambda rows: rows[1:])
    last = update(derived)
    assert last is not None
    np.testing.assert_array_equal(last.item_vectors(), derived.item_vectors()[1:])
    notes = [note for note in last.manifest.metrics["notes"] if "newer than these metrics" in note]
    assert len(notes) == 1, "of a chain of updates the last alone is told"


def test_what_is_learned_from_events_is_learned_anew(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    train = command_line(tiny_config, tiny_data, tmp_path)
    run = finished(train("var", *LEARNED))
    edit(tiny_data, lambda rows: rows[1:])
    lines: list[str] = []
    derived = update_catalogue(run, load_config(tiny_config), tiny_data, tmp_path / "var", say=lines.append)
    assert derived is not None
    assert f"events: those of run {run.run_id}" in lines
    ignoring = "sources.main.interactions.unknown_items=ignore"
    taught_alike(derived, finished(train("other", ignoring, *LEARNED)))


def taught_alike(derived: Run, fresh: Run) -> None:
    found, expected = derived.history_vectors(), fresh.history_vectors()
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    priors = [[item.prior for item in one.catalogue()] for one in (derived, fresh)]
    np.testing.assert_allclose(priors[0], priors[1], rtol=1e-4)


def a_week_later(rows: list[Row]) -> list[Row]:
    """The events, and of each person another one, of items that few had chosen."""
    week = int(rows[-1]["time"]) + 7 * 86_400
    return [*rows, *({**row, "item": f"item-{n % 7}", "time": str(week + n)} for n, row in enumerate(rows[::5]))]


def no_embedding(*_: object) -> np.ndarray:
    raise AssertionError("a text that is known was embedded again")


def test_newer_events_alone_are_learned_as_a_training_would(
    tiny_config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = command_line(tiny_config, tiny_data, tmp_path)
    run = finished(train("var", *LEARNED))
    lines: list[str] = []

    def update(of: Run) -> Run | None:
        with monkeypatch.context() as patch:
            patch.setattr("training.catalogue_update.EmbeddingCache.embed_with", no_embedding)
            return update_catalogue(of, load_config(tiny_config), tiny_data, tmp_path / "var", say=lines.append)

    assert update(run) is None
    assert lines == [
        f"catalogue: the 32 items of {ITEMS} and the events of {EVENTS} are those of run {run.run_id}, nothing to do"
    ]
    edit(tiny_data, a_week_later, EVENTS)
    derived = update(run)
    assert derived is not None
    assert lines[1:3] == [
        f"catalogue: the 32 items of {ITEMS} are those of run {run.run_id}",
        f"events: {EVENTS} changed",
    ]
    taught_alike(derived, finished(train("other", *LEARNED)))
    assert [item.prior for item in derived.catalogue()] != [item.prior for item in run.catalogue()]
    np.testing.assert_array_equal(derived.item_vectors(), run.item_vectors())
    np.testing.assert_array_equal(derived.head()[0], run.head()[0])
    assert derived.score_weights == run.score_weights
    assert update(derived) is None

    weight, bias = derived.head()
    tuned = derive_run(derived, tmp_path / "var", reason="test", head=(weight + 1, bias))
    assert update(tuned) is None, "what was read is known after another derivation too"
    edit(tiny_data, a_week_later, EVENTS)
    edit(tiny_data, lambda rows: rows[1:])
    last = update(tuned)
    assert last is not None
    assert lines[-3].startswith("catalogue: 0 added, 0 changed, 1 removed")
    assert lines[-2] == f"events: {EVENTS} changed"
    ignoring = "sources.main.interactions.unknown_items=ignore"
    taught_alike(last, finished(train("third", ignoring, *LEARNED)))
    np.testing.assert_array_equal(last.item_vectors(), run.item_vectors()[1:])
    assert update(last) is None
    assert len([note for note in last.manifest.metrics["notes"] if "newer than these metrics" in note]) == 1


@pytest.mark.parametrize("learned", [{"prior": "recency"}, {"vectors": "behaviour"}, {}])
def test_events_count_where_something_is_learned_from_them(
    tiny_config: Path, tiny_data: Path, tmp_path: Path, learned: dict[str, str]
) -> None:
    settings = load_config(tiny_config)
    run = made_run(tiny_config, tmp_path / "var", load_items(settings.sources[0], tiny_data), **learned)
    if learned:  # the run that was made up knows no file
        updated = update_catalogue(run, settings, tiny_data, tmp_path / "var", say=print)
        assert updated is not None
        run = updated
    edit(tiny_data, a_week_later, EVENTS)
    derived = update_catalogue(run, settings, tiny_data, tmp_path / "var", say=print)
    assert (derived is not None) == bool(learned)


@pytest.fixture
def taught_run(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Run:
    """A run that has learned from the twelve people of the tiny dataset."""
    settings = load_config(tiny_config)
    made = made_run(tiny_config, tmp_path / "var", load_items(settings.sources[0], tiny_data), prior="recency")
    run = update_catalogue(made, settings, tiny_data, tmp_path / "var", say=print)
    assert run is not None
    return run


def test_the_table_that_translates_the_ids_of_events_counts_as_they_do(
    taught_run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def translated(*rows: str) -> Run | None:
        (tiny_data / "shop/ids.csv").write_text("\n".join(["theirs,ours", *rows]) + "\n", encoding="utf-8")
        tree = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
        via = {"file": "shop/ids.csv", "key": "theirs", "value": "ours"}
        tree["sources"][0]["interactions"]["item_id"] = {"column": "item", "via": via}
        path = tmp_path / "translated" / tiny_config.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return update_catalogue(now[-1], load_config(path), tiny_data, tmp_path / "var", say=lines.append)

    now, lines = [taught_run], list[str]()
    same = [f"item-{n},item-{n}" for n in range(32)]
    first = translated(*same)
    assert first is not None
    assert "events: shop/ids.csv changed" in lines
    now.append(first)
    assert translated(*same) is None
    assert f"the events of {EVENTS}, shop/ids.csv are those of run {first.run_id}, nothing to do" in lines[-1]
    assert translated(*same[:30], "item-30,item-31", "item-31,item-30") is not None


def test_events_that_cannot_be_learned_from_are_one_line_and_change_nothing(
    taught_run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in taught_run.path.parent.iterdir())
    events = tiny_data / EVENTS
    header, *rows = events.read_text(encoding="utf-8").splitlines()

    def refused() -> str:
        with pytest.raises(DatasetError) as caught:
            update_catalogue(taught_run, load_config(tiny_config), tiny_data, tmp_path / "var", say=print)
        assert "\n" not in caught.value.message
        return caught.value.message

    def refused_of(*rows: str) -> str:
        events.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return refused()

    assert "shop/events.csv: row 2 (line 3)" in refused_of(rows[0], rows[1].replace("1700", "soon"))
    assert "has no rows" in refused_of()
    assert "there are none" in refused_of(*(row.replace("item-", "unknown-") for row in rows))
    message = refused_of(*rows[:25])
    assert "of 5 people, where run " in message
    assert "learned from 12" in message
    assert "make catalogue SHRINK=yes" in message
    events.unlink()
    assert "shop/events.csv: cannot be read (No such file or directory)" in refused()
    assert sorted(path.name for path in taught_run.path.parent.iterdir()) == before


def test_fewer_events_are_the_newer_truth(taught_run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    def update(of: Run, people: int, *, may_shrink: bool = False) -> Run:
        edit(tiny_data, lambda rows: rows[: people * 5], EVENTS)
        settings = load_config(tiny_config)
        found = update_catalogue(of, settings, tiny_data, tmp_path / "var", say=print, may_shrink=may_shrink)
        assert found is not None
        return found

    half = update(taught_run, 6)
    assert half.manifest.dataset.people == 6
    assert update(update(half, 2, may_shrink=True), 1).manifest.dataset.people == 1


@pytest.fixture
def shop_run(tiny_config: Path, tmp_path: Path) -> Run:
    """A run with four items of one label."""
    return made_run(tiny_config, tmp_path / "var", items_of("one", "two", "three", "four"))


def written(data: Path, *items: Item) -> None:
    lines = ["id,name,text,kind,colour,prior"]
    lines += [f"{item.item_id},{item.title},{item.text},{item.label},blue,{item.prior}" for item in items]
    (data / "shop/items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_likely_mistakes_are_refused_and_change_nothing(
    shop_run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def refused(*items: Item, source: str = "main") -> str:
        written(tiny_data, *items)
        settings = load_config(tiny_config, (f"sources.main.name={source}",))
        with pytest.raises(DatasetError) as caught:
            update_catalogue(shop_run, settings, tiny_data, tmp_path / "var", say=print)
        assert "\n" not in caught.value.message
        return caught.value.message

    four = items_of("one", "two", "three", "four")
    message = refused(*four, replace(four[0], item_id="id-five", label="Shirt"))
    assert "1 labels of 1 items are unknown" in message
    assert "'Shirt' of item 'id-five' (did you mean 'Shirts'?)" in message
    assert "has no rows" in refused()
    assert "lacks 3 of the 4 items" in refused(four[0])
    assert "make catalogue SHRINK=yes" in refused(four[0])
    assert "of the source 'another', the run is of 'main'" in refused(*four, source="another")
    assert [path.name for path in shop_run.path.parent.iterdir()] == [shop_run.run_id]


def test_a_catalogue_may_shrink_where_that_is_said(
    shop_run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(_: object, __: object, ___: int, texts: list[str], *____: object) -> np.ndarray:
        return vectors_of(texts)

    monkeypatch.setattr("training.catalogue_update.EmbeddingCache.embed_with", embed)
    written(tiny_data, *items_of("one", "two"))
    assert update_catalogue(shop_run, load_config(tiny_config), tiny_data, tmp_path / "var", say=print) is not None
    written(tiny_data, *items_of("one"))
    derived = update_catalogue(
        shop_run, load_config(tiny_config), tiny_data, tmp_path / "var", say=print, may_shrink=True
    )
    assert derived is not None
    assert [item.item_id for item in derived.catalogue()] == ["id-one"]
