"""A run's catalogue is brought up to date: only new texts are embedded, and likely mistakes are refused."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import items_of, made_run, vectors_of
from training_helpers import command_line, finished, without_interactions

from training.catalogue_update import compare_catalogues, update_catalogue, updated_vectors
from training.config_loading import load_config
from training.dataset import Item
from training.errors import DatasetError
from training.run import Run

TEXTS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])
CATALOGUES = st.dictionaries(st.sampled_from("stuvwxyz"), st.tuples(TEXTS, st.integers(0, 2)), max_size=8).map(
    lambda rows: [Item(item_id, item_id, text, "Shirts", float(prior)) for item_id, (text, prior) in rows.items()]
)
Row = dict[str, str]


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


def edit(data: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    path = data / "shop/items.csv"
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
    history = ("history.vectors=behaviour", "history.prior=recency", "history.dimensions=4")
    train = command_line(tiny_config, tiny_data, tmp_path)
    run = finished(train("var", *history))
    edit(tiny_data, lambda rows: rows[1:])
    derived = update_catalogue(run, load_config(tiny_config, history), tiny_data, tmp_path / "var", say=print)
    assert derived is not None
    ignoring = "sources.main.interactions.unknown_items=ignore"
    fresh = finished(train("other", ignoring, *history))
    found, expected = derived.history_vectors(), fresh.history_vectors()
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    priors = [[item.prior for item in one.catalogue()] for one in (derived, fresh)]
    np.testing.assert_allclose(priors[0], priors[1], rtol=1e-4)


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
