"""A table from a file of any format: its cells, or one error that names the file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.dataset_tables import read_table
from training.errors import DatasetError


def test_a_parquet_cell_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    half = b"\xed\xa0\x80"  # of a surrogate pair; Parquet's writers do not look
    offsets = np.array([0, 4, 4 + len(half)], dtype=np.int32)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"good" + half)]
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    parquet.write_table(pyarrow.table({"id": ["a", "b"], "text": text}), tmp_path / "items.parquet")
    with pytest.raises(DatasetError, match=r"^items\.parquet: row 2, column 'text' is not UTF-8; write"):
        read_table(tmp_path / "items.parquet", "items.parquet")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"id": "\\ud800"}', "line 2 escapes half a character"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_bad_jsonl_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / "x.jsonl", "x.jsonl")


def test_jsonl_may_hold_objects_lists_and_line_separators(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "a\u2028b", "relevant": {"sku:1|x": 2}}, {"id": None, "text": "NA", "relevant": ["é"]}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    table = read_table(tmp_path / "x.jsonl", "x.jsonl")
    assert table.frame.to_dict("records") == [
        {"id": "7", "text": "a\u2028b", "relevant": '{"sku:1|x": 2}'},
        {"id": "", "text": "NA", "relevant": '["é"]'},
    ]
    assert list(table.lines or ()) == [1, 3]


def test_the_format_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"must end in \.csv, \.jsonl, \.parquet"):
        read_table(tmp_path / "x.xlsx", "x.xlsx")


# Every character that UTF-8 can carry, NUL apart.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=5))
def test_any_text_survives_csv_and_jsonl(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("a", "b"), *cells])
    lines = [json.dumps({"a": a, "b": b}, ensure_ascii=False) for a, b in cells]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    for name in ("x.csv", "x.jsonl"):
        frame = read_table(tmp_path / name, name).frame
        assert list(frame.itertuples(index=False, name=None)) == cells


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(["x.csv", "x.csv.gz", "x.jsonl", "x.jsonl.gz"]))
def test_any_bytes_are_a_table_or_one_clear_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        read_table(tmp_path / name, name)
    except DatasetError as error:
        assert error.message.startswith(f"{name}: ")
