"""Reads one table (CSV, JSONL or Parquet, gzip or not) into text cells that remember their row and line."""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.errors import DatasetError

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table whose cells are text. `lines[i]` is the file's line of data row i; None where a file has no lines.

    `rows[i]` is the number in the file, from 1, of row i; None where no row was left out.
    """

    file: str
    frame: pd.DataFrame
    lines: Sequence[int] | None
    rows: Sequence[int] | None = None

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the rows in the file, from 1."""
        return range(1, len(self.frame) + 1) if self.rows is None else self.rows

    def keep(self, wanted: "npt.ArrayLike") -> "Table":
        """The rows where `wanted` is true; errors still name their place in the file."""
        places = np.flatnonzero(np.asarray(wanted, dtype=bool))
        lines = None if self.lines is None else [self.lines[place] for place in places]
        frame = self.frame.iloc[places].reset_index(drop=True)
        return Table(self.file, frame, lines, [self.numbers[place] for place in places])

    def column(self, name: str) -> "pd.Series[str]":
        """The cells of one column, without the white space around them.

        Raises:
            DatasetError: There is no such column.
        """
        if name not in self.frame.columns:
            columns = [str(column) for column in self.frame.columns]
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns)}:"
            raise DatasetError(f"{self.file}: no column {name!r}; {hint} name the right one in the domain's YAML")
        return self.frame[name].str.strip()

    def reject(self, bad: "npt.ArrayLike | pd.Series[bool]", column: str, problem: str, fix: str) -> None:
        """Do nothing where no row is bad, else name the first bad row and the count.

        Raises:
            DatasetError: At least one entry of `bad` is true.
        """
        rows = np.flatnonzero(np.asarray(bad, dtype=bool))
        if not len(rows):
            return
        first = int(rows[0])
        line = f" (line {self.lines[first]})" if self.lines is not None else ""
        value = f", got {shorten(str(self.frame[column].iloc[first]))}" if column in self.frame.columns else ""
        count = f" ({len(rows)} rows have this problem)" if len(rows) > 1 else ""
        raise DatasetError(
            f"{self.file}: row {self.numbers[first]}{line}, column {column!r}: {problem}{value}; {fix}{count}"
        )


def shorten(value: str, limit: int = 60) -> str:
    """`value` in quotes, cut to about `limit` characters."""
    return repr(value if len(value) <= limit else value[:limit] + "…")


def read_table(path: Path, file: str, missing: Sequence[str] = ()) -> Table:
    """Read the table at `path`; `file` is its name in errors, cells equal to one of `missing` become empty.

    Raises:
        DatasetError: The file cannot be read, is empty, or is not what its name says.
    """
    name = file.removesuffix(".gz")
    content = _content(path, file)
    if name.endswith(".csv"):
        table = _read_csv(_decode(content, file), file)
    elif name.endswith(".jsonl"):
        table = _read_jsonl(_decode(content, file), file)
    elif name.endswith(".parquet"):
        table = _read_parquet(content, file)
    else:
        raise DatasetError(f"{file}: the format is told by the name, which must end in {', '.join(FORMATS)} (and .gz)")
    if table.frame.empty:
        raise DatasetError(f"{file}: has no rows; write at least one below the header")
    return Table(file, table.frame.replace(dict.fromkeys(missing, "")), table.lines) if missing else table


def _content(path: Path, file: str) -> bytes:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if file.endswith(".gz") and content else content
    except FileNotFoundError:
        raise DatasetError(f"{file}: not found; looked for {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{file}: damaged gzip file ({error}); compress it again") from None
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror})") from None
    if not content.strip():
        raise DatasetError(f"{file}: is empty; write a header and at least one row")
    return content


def _decode(content: bytes, file: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{file}: line {line} is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DatasetError(f"{file}: line {line} holds a NUL character; is it UTF-16? Save the file as UTF-8")
    return text


def _read_csv(text: str, file: str) -> Table:
    # The csv module rather than pandas: pandas fills short rows up silently and does not tell the line of a row.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records, lines, last = [], [], 0
    try:
        for record in reader:
            if len(record) > 1 or "".join(record).strip():
                records.append(record)
                lines.append(last + 1)
            last = reader.line_num
    except csv.Error as error:
        raise DatasetError(f"{file}: line {last + 1} is not valid CSV ({error}); check its quotes") from None
    if not records:
        raise DatasetError(f"{file}: holds nothing but white space; write a header and at least one row")
    header = records[0]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DatasetError(f"{file}: the header names the column {repeated[0]!r} twice; rename one")
    wrong = [row for row, record in enumerate(records) if len(record) != len(header)]
    if wrong:
        cells, expected = len(records[wrong[0]]), len(header)
        count = f" ({len(wrong)} rows have this problem)" if len(wrong) > 1 else ""
        where = f"row {wrong[0]} (line {lines[wrong[0]]})"
        fix = "put a cell that holds a comma in quotes"
        raise DatasetError(f"{file}: {where} has {cells} cells, the header has {expected}; {fix}{count}")
    return Table(file, pd.DataFrame(records[1:], columns=header, dtype=str), lines[1:])


def _read_jsonl(text: str, file: str) -> Table:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{file}: line {number} is not valid JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{file}: line {number} is not a JSON object; write one object a line")
        cells = {key: _cell(value) for key, value in row.items()}
        if any("\ud800" <= character <= "\udfff" for cell in cells.values() for character in cell):
            raise DatasetError(f"{file}: line {number} escapes half a character (\\ud800 to \\udfff); write whole ones")
        rows.append(cells)
        lines.append(number)
    return Table(file, pd.DataFrame(rows, dtype=str).fillna(""), lines)


def _read_parquet(content: bytes, file: str) -> Table:
    try:
        import pyarrow  # noqa: F401, PLC0415 - an extra, needed for this format alone
    except ImportError as error:
        fix = "pip install 'pyarrow>=18', or give the file as CSV"
        raise DatasetError(f"{file}: Parquet needs pyarrow ({error}): {fix}") from None
    try:
        frame = pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    except (ValueError, OSError) as error:
        raise DatasetError(f"{file}: not a valid Parquet file: {' '.join(str(error).split())[:200]}") from None
    cells: dict[str, list[str]] = {str(name): [] for name in frame.columns}
    for name in frame.columns:
        column = cells[str(name)]
        try:
            column.extend(_cell(value) for value in frame[name])
        except UnicodeDecodeError:  # nothing checks a file's strings before they are read
            where = f"row {len(column) + 1}, column {str(name)!r}"
            raise DatasetError(f"{file}: {where} is not UTF-8; write the text as UTF-8") from None
    return Table(file, pd.DataFrame(cells, dtype=str), None)


def _cell(value: object) -> str:
    """A JSON or Parquet value as the text a CSV cell would hold; an object or a list becomes JSON."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, ensure_ascii=False)
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    return str(value)
