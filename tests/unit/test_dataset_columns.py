"""Columns that say more than their name: mapped labels, drawn splits, several instruction tables, translated ids."""

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config_loading import load_config
from training.dataset import SPLITS, Dataset
from training.dataset_loading import fingerprint, load_dataset
from training.dataset_splits import draw_splits
from training.errors import ConfigError, DatasetError
from training.plan import make_plan
from training.relevance import Relevance
from training.train import train_run

SHARES: dict[Any, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}


def load(config: Path, data: Path, **sections: dict[str, Any]) -> Dataset:
    """The dataset with keys of `catalogue`, `instructions` or `interactions` replaced."""
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, keys in sections.items():
        tree["sources"][0][name].update(keys)
    changed = config.parent / "changed" / config.name
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_dataset(load_config(changed), data)


def change(path: Path, column: str, values: dict[int, str]) -> None:
    """Write cells of one column; rows count from 1. A column that is not there is added, empty."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows, start=1):
        row[column] = values.get(number, row.get(column, ""))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_the_first_of_a_list_that_the_map_names_is_the_label(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/items.csv", "kind", {1: "cheap| tee |Hats", 2: "cheap"})
    label = {"column": "kind", "separator": "|", "unmapped": "skip", "default": "Other"}
    names = {"tee": "Shirts", **{name: name for name in ("Shirts", "Hats", "Shoes", "Bags")}}
    dataset = load(tiny_config, tiny_data, catalogue={"label": {**label, "map": names}})
    assert [item.label for item in dataset.items[:3]] == ["Shirts", "Other", "Shirts"]


def test_a_map_without_separator_keeps_what_it_does_not_name(tiny_config: Path, tiny_data: Path) -> None:
    label = {"column": "kind", "unmapped": "keep", "map": {"Hats": "Shirts"}}
    dataset = load(tiny_config, tiny_data, catalogue={"label": label}, instructions={"label": label})
    assert dataset.labels == ("Bags", "Shirts", "Shoes")


def test_a_value_that_the_map_lacks_is_named(tiny_config: Path, tiny_data: Path) -> None:
    label = {"column": "kind", "map": {"Shirts": "Shirts", "Shoes": "Shoes"}}
    with pytest.raises(
        DatasetError,
        match=r"^shop/items.csv: row 17 \(line 18\), column 'kind': the label's map has no entry for 'Hats'",
    ) as caught:
        load(tiny_config, tiny_data, catalogue={"label": label})
    assert caught.value.message.endswith(
        "add it to the map, or set unmapped to keep or skip (16 rows have this problem)"
    )


def test_a_label_out_of_a_json_object(tiny_config: Path, tiny_data: Path) -> None:
    cells = dict.fromkeys(range(1, 49), '{"type": "Hats"}') | {2: '{"type": ["Bags", "Hats"]}', 3: "{}", 4: ""}
    change(tiny_data / "shop/asks.csv", "slots", cells)
    found = load(
        tiny_config, tiny_data, instructions={"label": {"column": "slots", "key": "type"}, "unlabelled": "drop"}
    )
    assert Counter(i.label for i in found.instructions) == {"Hats": 45, "Bags": 1}
    assert found.notes == ("shop/asks.csv: 2 rows without a label are left out",)


@pytest.mark.parametrize(
    "cell",
    [
        "{broken",
        '["Hats"]',
        "7",
        pytest.param('{"type": ' + "[" * 100_000, id="nested too deep"),
        pytest.param("1" * 5_000, id="number too long"),
    ],
)
def test_a_cell_that_is_no_json_object_is_named(tiny_config: Path, tiny_data: Path, cell: str) -> None:
    change(tiny_data / "shop/asks.csv", "slots", {5: cell})
    with pytest.raises(
        DatasetError, match=r"row 5 \(line 6\), column 'slots': the cell is not a JSON object, got .+key"
    ):
        load(tiny_config, tiny_data, instructions={"label": {"column": "slots", "key": "type"}})


def test_each_problem_of_a_label_has_its_own_advice(tiny_config: Path, tiny_data: Path) -> None:
    label = {"column": "slots", "key": "type", "map": {"Hats": "Hats"}}
    unmapped, broken = '{"type": "Caps"}', "{broken"
    for cells, problem, fix, count in (
        ({1: unmapped, 2: broken, 3: unmapped}, "no entry for 'Caps'", "add it to the map", 2),
        ({1: broken, 2: unmapped, 3: broken}, "not a JSON object", "write one, or leave `key` out", 2),
    ):
        change(tiny_data / "shop/asks.csv", "slots", dict.fromkeys(range(1, 49), '{"type": "Hats"}') | cells)
        with pytest.raises(DatasetError, match=rf"row 1 .*{problem}.*; {fix}.* \({count} rows have this problem\)"):
            load(tiny_config, tiny_data, instructions={"label": label})


def test_dropped_rows_are_counted_and_errors_keep_the_file_s_row(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/items.csv", "kind", {2: "", 4: ""})
    change(tiny_data / "shop/events.csv", "item", dict.fromkeys(range(1, 61), "item-0"))
    dataset = load(tiny_config, tiny_data, catalogue={"unlabelled": "drop"})
    assert len(dataset.items) == 30
    assert dataset.notes == ("shop/items.csv: 2 rows without a label are left out",)
    change(tiny_data / "shop/items.csv", "prior", {6: "much"})
    with pytest.raises(DatasetError, match=r"row 6 \(line 7\), column 'prior'"):
        load(tiny_config, tiny_data, catalogue={"unlabelled": "drop"})


def test_dropping_every_row_is_refused(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/items.csv", "none", {})
    with pytest.raises(DatasetError, match=r"^shop/items.csv: no row has a label; name the right column"):
        load(tiny_config, tiny_data, catalogue={"label": "none", "unlabelled": "drop"})


def test_labels_without_items_are_classes_that_nothing_answers(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/asks.csv", "kind", {1: "Gloves", 2: "Gloves"})
    with pytest.raises(DatasetError, match=r"no item of the catalogue has this label, got 'Gloves'; .*keep"):
        load(tiny_config, tiny_data)
    dataset = load(tiny_config, tiny_data, instructions={"labels_without_items": "keep"})
    assert dataset.labels == ("Bags", "Gloves", "Hats", "Shirts", "Shoes")
    assert Relevance(dataset.items).grades(dataset.instructions[0]) == {}
    assert dataset.notes == ("labels that no item has, kept for the head alone: Gloves (2 instructions)",)


def test_a_split_that_nothing_answers_is_refused(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/asks.csv", "kind", dict.fromkeys(range(3, 49, 3), "Gloves"))
    with pytest.raises(DatasetError, match="no instruction of the split 'test' has a label that some item has; map"):
        load(tiny_config, tiny_data, instructions={"labels_without_items": "keep"})


def test_given_splits_are_mapped_and_a_validation_is_drawn(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/asks.csv", "split", {n: "dev" if n % 4 == 0 else "train" for n in range(1, 49)})
    split = {"column": "split", "map": {"train": "train", "dev": "test"}, "draw": {"train": 0.75, "validation": 0.25}}
    dataset = load(tiny_config, tiny_data, instructions={"split": {**split, "stratify": "label"}})
    assert [i.split == "test" for i in dataset.instructions] == [n % 4 == 0 for n in range(1, 49)]
    assert {i.label for i in dataset.split("validation")} == {"Shirts", "Shoes", "Hats", "Bags"}
    change(tiny_data / "shop/asks.csv", "split", {7: "eval"})
    message = (
        r"row 7 \(line 8\), column 'split': the split's map has no entry for 'eval', got 'eval'; add it .*dev, train"
    )
    with pytest.raises(DatasetError, match=message):
        load(tiny_config, tiny_data, instructions={"split": split})


def test_an_empty_group_is_named(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/asks.csv", "dialogue", {n: f"d{n // 3}" for n in range(1, 49) if n != 9})
    with pytest.raises(DatasetError, match=r"row 9 \(line 10\), column 'dialogue': empty group"):
        load(tiny_config, tiny_data, instructions={"split": {"draw": SHARES, "by": "dialogue"}})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"draw": {"train": 0.5, "test": 0.4}}, r"the shares of `draw` sum to 0\.9; make them sum to 1"),
        ({"draw": {"validation": 0.5, "test": 0.5}}, "must give `train` a share"),
        ({"draw": {"train": float("nan")}}, "every share must be above 0"),
        ({"draw": {"train": 2, "test": -1}}, "every share must be above 0"),
        ({"draw": {"train": 0.5, "dev": 0.5}}, "'train', 'validation' or 'test'"),
        ({"by": "dialogue"}, "name a `column`, or `draw`"),
        ({"column": "split", "by": "dialogue"}, "say how to `draw`"),
        ({"map": {"dev": "test"}, "draw": {"train": 1}}, "`map` needs the `column`"),
        ({"colum": "split"}, "unknown key 'sources.0.instructions.0.split.colum'; did you mean 'column'"),
    ],
)
def test_a_wrong_split_setting_is_explained(
    tiny_config: Path, tiny_data: Path, split: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tiny_config, tiny_data, instructions={"split": split})
    assert "\n" not in caught.value.message


rows = st.lists(st.tuples(st.text(max_size=3), st.sampled_from("abcdef")), min_size=1, max_size=60)
shares = st.sampled_from([SHARES, {"train": 0.8, "test": 0.2}, {"train": 0.2, "validation": 0.4, "test": 0.4}])


@given(rows=rows, shares=shares, seed=st.integers(0, 9), stratified=st.booleans(), order=st.randoms())
@settings(deadline=None)
def test_no_group_is_in_two_splits_and_the_order_of_rows_changes_nothing(
    rows: list[tuple[str, str]], shares: dict[Any, float], seed: int, stratified: bool, order: random.Random
) -> None:
    def draw(rows: list[tuple[str, str]]) -> set[tuple[str, str]]:
        groups, strata = [group for group, _ in rows], [stratum for _, stratum in rows]
        splits = draw_splits(groups, shares, seed, strata if stratified else None)
        assert set(splits) <= set(shares)
        return set(zip(groups, splits, strict=True))

    found = draw(rows)
    assert len(found) == len({group for group, _ in rows})
    assert draw(order.sample(rows, len(rows))) == found


@given(rows=rows, shares=shares, seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_label_keeps_a_row_in_train_when_stratified(
    rows: list[tuple[str, str]], shares: dict[Any, float], seed: int
) -> None:
    strata = [stratum for _, stratum in rows]
    for groups in ([group for group, _ in rows], [str(n) for n in range(len(rows))]):
        splits = draw_splits(groups, shares, seed, strata)
        taught = {stratum for stratum, split in zip(strata, splits, strict=True) if split == "train"}
        assert taught == set(strata)


@given(groups=st.lists(st.text(), max_size=40), more=st.lists(st.text(), max_size=40))
def test_a_row_keeps_its_split_when_rows_are_added(groups: list[str], more: list[str]) -> None:
    assert draw_splits([*groups, *more], SHARES, 0)[: len(groups)] == draw_splits(groups, SHARES, 0)


def test_the_shares_are_kept() -> None:
    groups = [f"row-{n}" for n in range(2000)]
    drawn = Counter(draw_splits(groups, SHARES, 0))
    assert [drawn[split] / 2000 for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.03)
    strata = [str(n % 10) for n in range(2000)]
    stratified = draw_splits(groups, SHARES, 0, strata)
    assert set(Counter(zip(strata, stratified, strict=True)).values()) == {140, 30}
    assert draw_splits(groups, SHARES, 1) != draw_splits(groups, SHARES, 0)


def with_two_tables(config: Path, data: Path, **second: Any) -> Dataset:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    source = tree["sources"][0]
    commands = {"file": "shop/commands.csv", "text": "say", "label": "type", "split": {"draw": {"train": 1}}, **second}
    source["instructions"] = [source["instructions"], commands]
    changed = config.parent / "two" / config.name
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_dataset(load_config(changed), data)


def test_several_tables_of_instructions_each_with_its_columns(tiny_config: Path, tiny_data: Path) -> None:
    (tiny_data / "shop/commands.csv").write_text("say,type\nhat please,Hats\nbag please,Bags\n", encoding="utf-8")
    dataset = with_two_tables(tiny_config, tiny_data, weak_labels=True)
    assert len(dataset.instructions) == 50
    assert [(i.instruction_id, i.text, i.label, i.split) for i in dataset.instructions[48:]] == [
        ("2-1", "hat please", "Hats", "train"),
        ("2-2", "bag please", "Bags", "train"),
    ]
    assert dataset.weak_labels
    assert "shop/commands.csv" in dataset.files


def test_an_id_in_two_tables_is_refused(tiny_config: Path, tiny_data: Path) -> None:
    (tiny_data / "shop/commands.csv").write_text("say,type\nask-3,Hats\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"^shop/commands.csv: instruction id 'ask-3' is in an earlier table"):
        with_two_tables(tiny_config, tiny_data, instruction_id="say")


VIA = {"item_id": {"column": "item", "via": {"file": "shop/ids.csv", "key": "code", "value": "id"}}}


def test_item_ids_are_translated(tiny_config: Path, tiny_data: Path) -> None:
    ids = [f"code-{n},{'' if n == 31 else f'item-{n}'}" for n in range(32)]
    (tiny_data / "shop/ids.csv").write_text("\n".join(["code,id", *ids, ""]), encoding="utf-8")
    before = load(tiny_config, tiny_data)
    change(
        tiny_data / "shop/events.csv",
        "item",
        {row: event.item_id.replace("item", "code") for row, event in enumerate(before.interactions, start=1)},
    )
    after = load(tiny_config, tiny_data, interactions={**VIA, "unknown_items": "ignore"})
    assert after.interactions == tuple(event for event in before.interactions if event.item_id != "item-31")
    assert "shop/ids.csv" in after.files
    config = load_config(tiny_config.parent / "changed" / tiny_config.name)
    digest, _ = fingerprint(config.sources[0], tiny_data)
    (tiny_data / "shop/ids.csv").write_text("code,id\ncode-0,item-1\n", encoding="utf-8")
    assert fingerprint(config.sources[0], tiny_data)[0] != digest
    with pytest.raises(
        DatasetError, match=r"row \d+ .*the catalogue has no such item by way of shop/ids.csv, got 'code"
    ):
        load(tiny_config, tiny_data, interactions=VIA)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("code,id\na,item-1\na,item-2\n", r"^shop/ids.csv: row 2 \(line 3\), column 'code': the id appears before"),
        ("code,id\n,item-1\n", r"^shop/ids.csv: row 1 \(line 2\), column 'code': empty id"),
        ("cod,id\na,item-1\n", r"^shop/ids.csv: no column 'code'; did you mean 'cod'"),
    ],
)
def test_a_wrong_translation_is_named(tiny_config: Path, tiny_data: Path, table: str, message: str) -> None:
    (tiny_data / "shop/ids.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        load(tiny_config, tiny_data, interactions=VIA)


@pytest.mark.parametrize("domain", ["news", "music", "video"])
def test_the_domain_s_yaml_is_valid(domain: str) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / f"{domain}.yaml")
    assert config.domain == domain


def test_a_label_without_items_is_learned_but_not_ranked(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    change(tiny_data / "shop/asks.csv", "kind", dict.fromkeys((1, 2, 3), "Gloves"))
    overrides = ["sources.main.instructions.labels_without_items=keep", "training.epochs=2"]
    plan = make_plan(load_config(tiny_config, overrides), tiny_data, tmp_path / "var")
    run = train_run(plan, lambda line: None)
    assert run.labels == ("Bags", "Gloves", "Hats", "Shirts", "Shoes")
    assert run.load_model().head.weight.shape[0] == 5
    assert (run.manifest.metrics["test"]["instructions"], run.manifest.metrics["test"]["instructions_ranked"]) == (
        16,
        15,
    )


def test_a_release_is_a_year_a_date_or_unknown(tiny_config: Path, tiny_data: Path) -> None:
    change(tiny_data / "shop/items.csv", "out", {1: "1971", 2: "1969-12-31", 3: ""})
    dataset = load(tiny_config, tiny_data, catalogue={"released": "out"})
    assert [item.released for item in dataset.items[:3]] == [365 * 86_400.0, -86_400.0, None]
    assert load(tiny_config, tiny_data).items[0].released is None


@pytest.mark.parametrize("cell", ["soon", "20133", "2013-13-01"])
def test_a_release_that_is_no_date_is_refused(tiny_config: Path, tiny_data: Path, cell: str) -> None:
    change(tiny_data / "shop/items.csv", "out", {4: cell})
    with pytest.raises(DatasetError, match=r"row 4 .*column 'out': not a year or a date, got .*write 2013 or"):
        load(tiny_config, tiny_data, catalogue={"released": "out"})
