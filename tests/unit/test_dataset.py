"""The dataset contract: what is read, and what is refused with file, row, column, value and fix."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from feedback.errors import InvalidEventError
from feedback.events import read_events
from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import Dataset
from training.dataset_loading import load_dataset
from training.errors import DatasetError
from training.relevance import Relevance


def load(config: Path, data: Path, *overrides: str) -> Dataset:
    return load_dataset(load_config(config, overrides), data)


def edit(path: Path, row: int, column: str, value: str) -> None:
    """Write `value` into one cell; `row` counts from 1."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.loc[row - 1, column] = value
    frame.to_csv(path, index=False)


def test_reads_all_three_tables(tiny_config: Path, tiny_data: Path) -> None:
    dataset = load(tiny_config, tiny_data)
    assert len(dataset.items) == 32
    assert dataset.labels == ("Bags", "Hats", "Shirts", "Shoes")
    assert [len(dataset.split(split)) for split in ("train", "validation", "test")] == [16, 16, 16]
    assert len(dataset.interactions) == 60
    first = dataset.items[0]
    assert first.text == "plain blue Shirt. A plain Shirt in blue"
    assert (first.title, first.label, first.prior, first.attributes) == (
        "plain blue Shirt",
        "Shirts",
        0,
        {"colour": "blue"},
    )
    assert dataset.interactions[0].timestamp == 1_700_000_000
    assert dataset.notes == ()


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz"])
def test_every_format_reads_the_same(tiny_config: Path, tiny_data: Path, suffix: str) -> None:
    expected = load(tiny_config, tiny_data)
    frame = pd.read_csv(tiny_data / "shop/items.csv", dtype={"prior": float})
    target = tiny_data / f"shop/items{suffix}"
    plain = target.with_name(target.name.removesuffix(".gz"))
    if ".jsonl" in suffix:
        frame.to_json(plain, orient="records", lines=True, force_ascii=False)
    elif ".parquet" in suffix:
        pytest.importorskip("pyarrow", exc_type=ImportError)
        frame.to_parquet(plain)
    else:
        frame.to_csv(plain, index=False)
    if suffix.endswith(".gz"):
        target.write_bytes(gzip.compress(plain.read_bytes()))
    found = load(tiny_config, tiny_data, f"sources.main.catalogue.file=shop/items{suffix}")
    assert found.items == expected.items


def test_parquet_without_pyarrow_says_how_to_get_it(
    tiny_config: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tiny_data / "shop/items.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"items\.parquet: Parquet needs pyarrow \(.+\): pip install"):
        load(tiny_config, tiny_data, "sources.main.catalogue.file=shop/items.parquet")


CELLS = [
    ("items.csv", 3, "id", "item-0", r"row 3 \(line 4\), column 'id': the item id appears before, got 'item-0'; make"),
    ("items.csv", 2, "id", "", r"row 2 \(line 3\), column 'id': empty item id"),
    (
        "items.csv",
        2,
        "id",
        "a\tb",
        r"row 2 \(line 3\), column 'id': a control character in the item id, got 'a\\tb'; wr",
    ),
    (
        "items.csv",
        2,
        "id",
        "é" * 129,
        r"row 2 \(line 3\), column 'id': an item id of more than 256 bytes, got 'é+…'; sh",
    ),
    ("items.csv", 2, "name", " ", r"row 2 \(line 3\), column 'name': the title is empty"),
    ("items.csv", 2, "kind", "", r"row 2 \(line 3\), column 'kind': empty label"),
    (
        "items.csv",
        5,
        "prior",
        "many",
        r"row 5 \(line 6\), column 'prior': the prior is not a finite number, got 'many'",
    ),
    ("items.csv", 5, "prior", "inf", r"row 5 .*not a finite number, got 'inf'"),
    ("items.csv", 5, "prior", "nan", r"row 5 .*not a finite number, got 'nan'"),
    ("items.csv", 5, "prior", "-0.5", r"row 5 .*the prior is negative, got '-0\.5'; write 0 or more"),
    ("asks.csv", 4, "id", "ask-0", r"row 4 .*the instruction id appears before"),
    ("asks.csv", 4, "words", "", r"row 4 .*column 'words': the instruction is empty"),
    (
        "asks.csv",
        4,
        "kind",
        "Shirst",
        r"row 4 .*no item of the catalogue has this label, got 'Shirst'; did you mean 'Shirts'",
    ),
    ("asks.csv", 4, "kind", "", r"row 4 .*neither a label nor relevant items"),
    ("asks.csv", 4, "split", "dev", r"row 4 .*unknown split, got 'dev'; write one of train, validation, test"),
    ("asks.csv", 4, "relevant", "item-0:x", r"row 4 .*the grade 'x' is not a number, got 'item-0:x'"),
    ("asks.csv", 4, "relevant", "item-0:0", r"row 4 .*the grade '0' is not above 0"),
    ("asks.csv", 4, "relevant", "item-0:nan", r"row 4 .*the grade 'nan' is not above 0"),
    ("asks.csv", 4, "relevant", "item-99:1", r"row 4 .*the catalogue has no item 'item-99'"),
    ("asks.csv", 4, "relevant", "item-1:1|item-1:2", r"row 4 .*'item-1' is empty or named twice"),
    ("asks.csv", 4, "relevant", '{"item-1": [2]}', r"row 4 .*the grade '\[2\]' is not a number"),
    ("asks.csv", 4, "relevant", "{broken", r"row 4 .*column 'relevant'"),
    ("events.csv", 7, "user", "", r"row 7 .*empty user id"),
    ("events.csv", 7, "item", "item-77", r"row 7 .*the catalogue has no such item, got 'item-77'"),
    ("events.csv", 7, "value", "much", r"row 7 .*the value is not a finite number"),
    (
        "events.csv",
        7,
        "time",
        "yesterday",
        r"row 7 .*not a time, got 'yesterday'; write seconds since 1970, or ISO 8601",
    ),
    ("events.csv", 7, "time", "inf", r"row 7 .*not a time, got 'inf'"),
]


@pytest.mark.parametrize(("file", "row", "column", "value", "message"), CELLS)
def test_a_bad_cell_is_named(
    tiny_config: Path, tiny_data: Path, file: str, row: int, column: str, value: str, message: str
) -> None:
    edit(tiny_data / "shop" / file, row, column, value)
    with pytest.raises(DatasetError, match=rf"^shop/{file}: {message}") as caught:
        load(tiny_config, tiny_data)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("item_id", ["a b/1:ü", "a\x7fb", "a\x1fb", "a\x85b", "é" * 128, "é" * 128 + "a"])
def test_an_item_id_is_taken_where_feedback_on_it_is(tiny_config: Path, tiny_data: Path, item_id: str) -> None:
    event = {"event_id": "1", "domain": "shop", "event": "click", "item_id": item_id}
    tensors = {name: np.array([[text.encode()]], dtype=object) for name, text in event.items()}
    # No events of the dataset's own: they are of the item as it was called before.
    settings = ["sources.main.interactions=null"]
    edit(tiny_data / "shop/items.csv", 2, "id", item_id)
    try:
        read_events(tensors.get)
    except InvalidEventError:
        with pytest.raises(DatasetError, match="item id"):
            load(tiny_config, tiny_data, *settings)
    else:
        assert load(tiny_config, tiny_data, *settings).items[1].item_id == item_id


def test_several_bad_rows_give_the_first_and_the_count(tiny_config: Path, tiny_data: Path) -> None:
    for row in (9, 5, 30):
        edit(tiny_data / "shop/items.csv", row, "prior", "-1")
    with pytest.raises(DatasetError, match=r"row 5 \(line 6\).*\(3 rows have this problem\)$"):
        load(tiny_config, tiny_data)


def test_the_line_counts_lines_inside_quotes(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/items.csv", 1, "text", "a text\nof three\nlines")
    edit(tiny_data / "shop/items.csv", 2, "kind", "")
    with pytest.raises(DatasetError, match=r"row 2 \(line 5\)"):
        load(tiny_config, tiny_data)


def test_a_long_value_is_shortened(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/asks.csv", 1, "split", "x" * 10_000)
    with pytest.raises(DatasetError) as caught:
        load(tiny_config, tiny_data)
    assert len(caught.value.message) < 250


CONTENTS = [
    (b"", r"items\.csv: is empty"),
    (b"id,name,text,kind,colour,prior\n", r"items\.csv: has no rows"),
    (b"id,name\n\xff\xfe,x\n", r"items\.csv: line 2 is not UTF-8 \(byte 8\)"),
    (b"id,name\na\0b,x\n", r"items\.csv: line 2 holds a NUL"),
    (b"id,id\n1,2\n", r"names the column 'id' twice"),
    (b"id,name,text,kind,colour,prior\n1,2,3,4,5,6\n1,2\n", r"row 2 \(line 3\) has 2 cells, the header has 6; put"),
    (b"id,name,text,kind,colour,prior\n1,2,3,4,5,6\n1,2,3,4,5,6,7\n", r"row 2 \(line 3\) has 7 cells"),
    (b"id,name\n1,2,3\n", r"row 1 \(line 2\) has 3 cells"),
    (b'id,name\n"1,2\n', r"line 2 is not valid CSV \(unexpected end of data\)"),
    (b"id,name,text,category,colour,prior\n1,2,3,4,5,6\n", r"no column 'kind'; it has id, name"),
    (b"id,name,text,kinds,colour,prior\n1,2,3,4,5,6\n", r"no column 'kind'; did you mean 'kinds'\?"),
]


@pytest.mark.parametrize(("content", "message"), CONTENTS)
def test_a_bad_file_is_named(tiny_config: Path, tiny_data: Path, content: bytes, message: str) -> None:
    (tiny_data / "shop/items.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        load(tiny_config, tiny_data)
    assert caught.value.message.startswith("shop/items.csv: ")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not gzip", lambda b: b[:-20] + b"\0" * 20])
def test_a_damaged_gzip_file(tiny_config: Path, tiny_data: Path, damage: object) -> None:
    packed = gzip.compress((tiny_data / "shop/items.csv").read_bytes())
    (tiny_data / "shop/items.csv.gz").write_bytes(damage(packed))  # type: ignore[operator]
    with pytest.raises(DatasetError, match=r"items\.csv\.gz: damaged gzip file"):
        load(tiny_config, tiny_data, "sources.main.catalogue.file=shop/items.csv.gz")


def test_na_is_text_unless_it_is_named_missing(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/items.csv", 1, "name", "NA")
    assert load(tiny_config, tiny_data).items[0].title == "NA"
    with pytest.raises(DatasetError, match=r"row 1 .*the title is empty"):
        load(tiny_config, tiny_data, "sources.main.catalogue.missing=[NA]")
    titled = load(
        tiny_config,
        tiny_data,
        "sources.main.catalogue.missing=[NA]",
        "sources.main.catalogue.title=[name, '{colour} {kind}']",
    )
    assert titled.items[0].title == "blue Shirts"
    assert titled.items[0].text == "A plain Shirt in blue"
    assert titled.notes == ("1 items without 'name' are titled by '{colour} {kind}'",)


@pytest.mark.parametrize("template", ["{name", "{name.upper}", "{name!r}", "{name:>9}", "{}", "{name[0]}"])
def test_a_template_holds_only_columns(tiny_config: Path, tiny_data: Path, template: str) -> None:
    with pytest.raises(DatasetError, match=r"in braces, as \{name\}"):
        load(tiny_config, tiny_data, f"sources.main.catalogue.text={json.dumps(template)}")


def test_the_first_source_that_exists_is_used(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    other = json.loads(json.dumps(tree["sources"][0]))
    other["name"] = "other"
    other["catalogue"]["file"] = "other/items.csv"
    config = DomainConfig.model_validate({**tree, "sources": [other, *tree["sources"]]})
    assert load_dataset(config, tiny_data).source == "main"
    with pytest.raises(DatasetError, match=r"none of \S+other/items\.csv, \S+shop/items\.csv exists.*--data"):
        load_dataset(config, tmp_path / "nowhere")


def test_a_source_without_its_instructions_is_an_error(tiny_config: Path, tiny_data: Path) -> None:
    (tiny_data / "shop/asks.csv").unlink()
    with pytest.raises(DatasetError, match=r"shop/asks\.csv: cannot be read"):
        load(tiny_config, tiny_data)


def without_splits(path: Path, *splits: str) -> None:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame[~frame.split.isin(splits)].to_csv(path, index=False)


def test_without_validation_some_training_instructions_are_held_out(tiny_config: Path, tiny_data: Path) -> None:
    without_splits(tiny_data / "shop/asks.csv", "validation", "test")
    dataset = load(tiny_config, tiny_data)
    assert (len(dataset.split("train")), len(dataset.split("validation"))) == (13, 3)
    assert "no validation split: 3 training instructions are held out for it" in dataset.notes
    assert "no test split: test metrics are left out" in dataset.notes
    assert load(tiny_config, tiny_data).instructions == dataset.instructions


def test_without_training_instructions_there_is_nothing_to_do(tiny_config: Path, tiny_data: Path) -> None:
    without_splits(tiny_data / "shop/asks.csv", "train")
    with pytest.raises(DatasetError, match="no instruction is in the split 'train'"):
        load(tiny_config, tiny_data)


def test_a_leak_between_splits_is_said(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/asks.csv", 3, "words", "i want a Blue  Shirt")  # the same to many an encoder
    assert load(tiny_config, tiny_data).notes == (
        "1 test instructions have the very words of a training or validation instruction",
    )


def test_times_may_be_iso(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/events.csv", 1, "time", "2023-11-14T22:13:20Z")
    edit(tiny_data / "shop/events.csv", 2, "time", "2023-11-15T00:13:21+02:00")
    times = [event.timestamp for event in load(tiny_config, tiny_data).interactions[:2]]
    assert times == [1_700_000_000, 1_700_000_001]


def test_milliseconds_are_no_seconds(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/events.csv", 3, "time", "1714521600000")
    message = r"row 3 .*a time after the year 2200, got '1714521600000'; write seconds since 1970, milliseconds divided"
    with pytest.raises(DatasetError, match=message):
        load(tiny_config, tiny_data)


def test_dates_without_hyphens_are_no_seconds(tiny_config: Path, tiny_data: Path) -> None:
    path = tiny_data / "shop/events.csv"
    frame = pd.read_csv(path, dtype=str)
    frame["time"] = "20240501"
    frame.loc[1, "time"] = "2024-05-02T12:00:00Z"
    frame.to_csv(path, index=False)
    message = r"row 1 .*a date without hyphens, which reads as seconds, got '20240501'; write it as 2024-05-01"
    with pytest.raises(DatasetError, match=message):
        load(tiny_config, tiny_data)
    edit(path, 1, "time", "1700000000")  # one such number beside others may be a moment of 1970
    assert load(tiny_config, tiny_data).interactions[2].timestamp == 20240501


def test_unknown_items_may_be_left_out(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/events.csv", 1, "item", "gone")
    dataset = load(tiny_config, tiny_data, "sources.main.interactions.unknown_items=ignore")
    assert len(dataset.interactions) == 59
    assert dataset.notes == ("1 events of items outside the catalogue are left out",)


def test_relevance_prefers_grades_then_attributes_then_the_label(tiny_config: Path, tiny_data: Path) -> None:
    asks = tiny_data / "shop/asks.csv"
    edit(asks, 1, "relevant", "item-3:2|item-9")
    edit(asks, 2, "colour", "turquoise")
    dataset = load(tiny_config, tiny_data)
    relevance = Relevance(dataset.items)
    graded, unmatched, matched = (relevance.grades(instruction) for instruction in dataset.instructions[:3])
    assert graded == {3: 2.0, 9: 1.0}
    assert unmatched == dict.fromkeys(range(8), 1.0)  # every shirt
    assert matched == {0: 1.0, 1: 1.0}  # the blue ones


def test_an_instruction_without_a_label_gets_that_of_its_best_items(tiny_config: Path, tiny_data: Path) -> None:
    edit(tiny_data / "shop/asks.csv", 1, "relevant", '{"item-0": 1, "item-9": 3, "item-1": 1}')
    edit(tiny_data / "shop/asks.csv", 1, "kind", "")
    assert load(tiny_config, tiny_data).instructions[0].label == "Shoes"
