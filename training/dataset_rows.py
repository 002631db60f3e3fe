"""Turns tables into items, instructions and interactions, and refuses the first row that breaks the contract."""

import difflib
import json
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.column_config import TranslationTable
from training.config import CatalogueConfig, InstructionsConfig, InteractionsConfig
from training.dataset import Instruction, Interaction, Item
from training.dataset_labels import read_labels
from training.dataset_splits import read_splits
from training.dataset_tables import Table, shorten
from training.errors import DatasetError

Texts = Sequence[str]
LATEST = 7_258_118_400  # 2200-01-01 in seconds since 1970: numbers above are no seconds
LONGEST_ID = 256  # bytes; feedback on an item takes no longer id, and no control character in one
CONTROL = r"[\x00-\x1f\x7f]"
DATE_DIGITS = r"(?:19|20|21)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"


def read_items(table: Table, config: CatalogueConfig) -> tuple[list[Item], list[str]]:
    """The catalogue's items in row order, and notes on what was chosen.

    Raises:
        DatasetError: A column is missing or a row is wrong.
    """
    labels = read_labels(table, config.label)
    table, dropped = _drop(table, labels, config.unlabelled)
    labels = [label for label in labels if label or not dropped]
    item_ids = table.column(config.item_id)
    table.reject(item_ids == "", config.item_id, "empty item id", "give every item an id")
    table.reject(item_ids.duplicated(), config.item_id, "the item id appears before", "make the ids unique")
    fix = "write ids without line breaks, tabs and the like"
    table.reject(item_ids.str.contains(CONTROL), config.item_id, "a control character in the item id", fix)
    too_long = [len(item_id.encode()) > LONGEST_ID for item_id in item_ids]
    table.reject(too_long, config.item_id, f"an item id of more than {LONGEST_ID} bytes", "shorten it")
    table.reject([not label for label in labels], config.label.column, "empty label", "give every item a label")
    titles, notes = _titles(table, config)
    texts = _render(table, config.text)
    table.reject(texts == "", _first_column(config.text), "the item's text is empty", "give every item a text")
    priors = _numbers(table, config.prior) if config.prior else np.zeros(len(table.frame))
    if config.prior:
        table.reject(~np.isfinite(priors), config.prior, "the prior is not a finite number", "write one, 0 if unknown")
        table.reject(priors < 0, config.prior, "the prior is negative", "write 0 or more")
    released = _releases(table, config.released) if config.released else [None] * len(table.frame)
    columns = {name: table.column(column).tolist() for name, column in config.attributes.items()}
    items = [
        Item(
            item_id,
            title,
            text,
            label,
            float(prior),
            {name: cells[row] for name, cells in columns.items() if cells[row]},
            release,
        )
        for row, (item_id, title, text, label, prior, release) in enumerate(
            zip(item_ids, titles, texts, labels, priors, released, strict=True)
        )
    ]
    return items, [*dropped, *notes]


def _drop(table: Table, targets: Sequence[object], unlabelled: str) -> tuple[Table, list[str]]:
    """Without the rows of empty targets, and a note on them, if `unlabelled` is `drop`."""
    count = sum(not target for target in targets)
    if unlabelled != "drop" or not count:
        return table, []
    if count == len(targets):
        raise DatasetError(f"{table.file}: no row has a label; name the right column, or map its values to labels")
    return table.keep([bool(target) for target in targets]), [
        f"{table.file}: {count} rows without a label are left out"
    ]


def _titles(table: Table, config: CatalogueConfig) -> tuple["pd.Series[str]", list[str]]:
    first, *others = [config.title] if isinstance(config.title, str) else config.title
    titles, notes = _render(table, first), []
    for other in others:
        empty = titles == ""
        if empty.any():
            titles = titles.where(~empty, _render(table, other))
            notes.append(f"{int(empty.sum())} items without {first!r} are titled by {other!r}")
    table.reject(titles == "", _first_column(first), "the title is empty", "give every item a title")
    return titles, notes


def read_instructions(
    table: Table, config: InstructionsConfig, items: Mapping[str, Item], labels: Texts, prefix: str = ""
) -> tuple[list[Instruction], list[str], list[str]]:
    """The instructions in row order, the group of each (see `read_splits`), and notes.

    An instruction without a label gets the label of its most relevant items.

    `prefix` comes before the row's number where that is the instruction's id.

    Raises:
        DatasetError: A column is missing or a row is wrong.
    """
    given = read_labels(table, config.label) if config.label else [""] * len(table.frame)
    named = table.column(config.relevant).tolist() if config.relevant else [""] * len(table.frame)
    table, notes = _drop(table, [label or cell for label, cell in zip(given, named, strict=True)], config.unlabelled)
    if notes:
        given = [label for label, cell in zip(given, named, strict=True) if label or cell]
    rows = len(table.frame)
    ids = _instruction_ids(table, config, prefix)
    texts = table.column(config.text)
    table.reject(texts == "", config.text, "the instruction is empty", "write the instruction or remove the row")
    relevant = _relevant(table, config.relevant, items) if config.relevant else [{} for _ in range(rows)]
    targets = _labels(table, config, given, relevant, items, labels)
    splits, groups = read_splits(table, config.split, texts.tolist(), targets)
    columns = {name: table.column(column).tolist() for name, column in config.attributes.items()}
    instructions = [
        Instruction(
            ids[row],
            texts.iloc[row],
            targets[row],
            {name: cells[row] for name, cells in columns.items() if cells[row]},
            relevant[row],
            splits[row],
        )
        for row in range(rows)
    ]
    return instructions, groups, notes


def _instruction_ids(table: Table, config: InstructionsConfig, prefix: str) -> list[str]:
    if config.instruction_id is None:
        return [f"{prefix}{number}" for number in table.numbers]
    ids = table.column(config.instruction_id)
    table.reject(ids == "", config.instruction_id, "empty instruction id", "give each one an id")
    table.reject(ids.duplicated(), config.instruction_id, "the instruction id appears before", "make the ids unique")
    return ids.tolist()


def _labels(
    table: Table,
    config: InstructionsConfig,
    given: Texts,
    relevant: Sequence[Mapping[str, float]],
    items: Mapping[str, Item],
    labels: Texts,
) -> list[str]:
    column = config.label.column if config.label else config.relevant or ""
    neither = [not label and not grades for label, grades in zip(given, relevant, strict=True)]
    table.reject(neither, column, "neither a label nor relevant items", "give the row one of them or remove it")
    known = set(labels)
    unknown = [bool(label) and label not in known for label in given]
    if any(unknown) and config.labels_without_items == "error":
        near = difflib.get_close_matches(given[unknown.index(True)], labels, n=1)
        fix = "use a label that some item has, map it, or set labels_without_items: keep"
        hint = f"did you mean {near[0]!r}?" if near else fix
        table.reject(unknown, column, "no item of the catalogue has this label", hint)
    return [label or _label_of(grades, items) for label, grades in zip(given, relevant, strict=True)]


def _label_of(relevant: Mapping[str, float], items: Mapping[str, Item]) -> str:
    totals: dict[str, float] = {}
    for item_id, grade in relevant.items():
        totals[items[item_id].label] = totals.get(items[item_id].label, 0.0) + grade
    return min(totals, key=lambda label: (-totals[label], label))


def _relevant(table: Table, column: str, items: Mapping[str, Item]) -> list[dict[str, float]]:
    """Reads `id:grade|id:grade`, or a JSON object of ids and grades, or a JSON list of ids (grade 1)."""
    parsed: list[dict[str, float]] = []
    problems: dict[int, str] = {}
    for row, cell in enumerate(table.column(column)):
        try:
            grades = _grades(cell)
            unknown = next((item_id for item_id in grades if item_id not in items), None)
            if unknown is not None:
                problems[row] = f"the catalogue has no item {shorten(unknown)}"
        except ValueError as error:
            grades, problems[row] = {}, str(error)
        parsed.append(grades)
    bad = np.zeros(len(parsed), dtype=bool)
    bad[list(problems)] = True
    fix = "write item ids with grades above 0, as sku-1:2|sku-7:1"
    table.reject(bad, column, problems[min(problems)] if problems else "", fix)
    return parsed


def _grades(cell: str) -> dict[str, float]:
    if not cell:
        return {}
    if cell.startswith(("{", "[")):
        value = json.loads(cell)
        pairs = [(key, 1) for key in value] if isinstance(value, list) else list(value.items())
    else:
        pairs = [
            (key, grade) if colon else (grade, 1) for key, colon, grade in (p.rpartition(":") for p in cell.split("|"))
        ]
    grades: dict[str, float] = {}
    for key, grade in pairs:
        item_id = str(key).strip()
        try:
            number = float(grade)
        except (TypeError, ValueError):
            raise ValueError(f"the grade {shorten(str(grade))} is not a number") from None
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"the grade {shorten(str(grade))} is not above 0")
        if not item_id or item_id in grades:
            raise ValueError(f"the item id {shorten(item_id)} is empty or named twice")
        grades[item_id] = number
    return grades


def read_interactions(
    table: Table, config: InteractionsConfig, items: Mapping[str, Item], translation: Mapping[str, str] | None = None
) -> tuple[list[Interaction], list[str]]:
    """The events in row order, and notes on what was left out. `translation` turns the file's ids into item ids.

    Raises:
        DatasetError: A column is missing or a row is wrong.
    """
    column = config.item_id.column
    users, item_ids = table.column(config.user_id), table.column(column)
    table.reject(users == "", config.user_id, "empty user id", "give the row a user id or remove it")
    if translation is not None:
        item_ids = item_ids.map(lambda cell: translation.get(cell, ""))
    known = item_ids.isin(list(items)).to_numpy()
    if config.unknown_items == "error":
        fix = "add the item, remove the row, or set unknown_items: ignore"
        via = "" if config.item_id.via is None else f" by way of {config.item_id.via.file}"
        table.reject(~known, column, f"the catalogue has no such item{via}", fix)
    values = _numbers(table, config.value) if config.value else np.ones(len(table.frame))
    if config.value:
        table.reject(~np.isfinite(values), config.value, "the value is not a finite number", "write a number")
    times = _timestamps(table, config.timestamp)
    notes = [f"{int((~known).sum())} events of items outside the catalogue are left out"] if not known.all() else []
    rows = zip(users[known], item_ids[known], values[known], times[known], strict=True)
    return [Interaction(user, item_id, float(value), float(time)) for user, item_id, value, time in rows], notes


def read_translation(table: Table, config: TranslationTable) -> dict[str, str]:
    """Ids and what they stand for; rows without a translation are left out.

    Raises:
        DatasetError: A column is missing, or an id is empty or there twice.
    """
    keys, values = table.column(config.key), table.column(config.value)
    table.reject(keys == "", config.key, "empty id", "give the row an id or remove it")
    table.reject(keys.duplicated(), config.key, "the id appears before", "keep one row an id")
    return {key: value for key, value in zip(keys, values, strict=True) if value}


def _timestamps(table: Table, column: str) -> npt.NDArray[np.float64]:
    cells = table.column(column)
    times = _numbers(table, column)
    numeric = np.isfinite(times)
    fix = "write seconds since 1970, milliseconds divided by 1000"
    table.reject(numeric & (times > LATEST), column, "a time after the year 2200", fix)
    # Read as seconds all such dates lie in August 1970.
    dates = numeric & cells.str.fullmatch(DATE_DIGITS).to_numpy(dtype=bool)
    if numeric.any() and (dates == numeric).all():
        table.reject(dates, column, "a date without hyphens, which reads as seconds", "write it as 2024-05-01")
    if not numeric.all():
        parsed = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
        seconds = (parsed - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(dtype=np.float64)
        times = np.where(np.isfinite(times), times, seconds)
    fix = "write seconds since 1970, or ISO 8601 as 2024-05-01T12:30:00Z"
    table.reject(~np.isfinite(times), column, "not a time", fix)
    return times


def _releases(table: Table, column: str) -> list[float | None]:
    """Years and dates as seconds since 1970; a year stands for its first day, an empty cell for "not known"."""
    cells = table.column(column)
    dates = cells.where(~cells.str.fullmatch(r"\d{4}"), cells + "-01-01")
    parsed = pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce")
    table.reject((cells != "") & parsed.isna(), column, "not a year or a date", "write 2013 or 2013-08-23, or nothing")
    seconds = (parsed - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return [float(second) if np.isfinite(second) else None for second in seconds]


def _numbers(table: Table, column: str) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = pd.to_numeric(table.column(column), errors="coerce").to_numpy(dtype=np.float64)
    return numbers


def _render(table: Table, template: str) -> "pd.Series[str]":
    """A column's cells, or a template filled row by row; empty where all of the template's fields are."""
    if "{" not in template:
        return table.column(template)
    names = _fields(template)
    cells = {name: table.column(name) for name in names}
    filled = pd.Series(
        [template.format_map(dict(zip(names, row, strict=True))) for row in zip(*cells.values(), strict=True)]
    )
    empty = pd.concat([column == "" for column in cells.values()], axis=1)
    # Only rows with an empty field are tidied: their template leaves gaps and stray punctuation behind.
    gaps = empty.any(axis=1).to_numpy()
    filled.loc[gaps] = filled[gaps].map(_tidy)
    rendered: pd.Series[str] = filled.where(~empty.all(axis=1).to_numpy(), "").str.strip()
    return rendered


def _tidy(text: str) -> str:
    text = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s+", " ", text))
    return re.sub(r"([.,;:])(?:\s*[.,;:])+", r"\1", text).lstrip(" .,;:")


def _fields(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DatasetError(f"template {template!r}: {error}; write columns in braces, as {{name}}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    if any(spec or conversion for _, _, spec, conversion in parts) or not all(
        re.fullmatch(r"[^.\[\]!:]+", n) for n in names
    ):
        raise DatasetError(f"template {template!r}: write only column names in braces, as {{name}}")
    return list(dict.fromkeys(names))


def _first_column(template: str) -> str:
    return _fields(template)[0] if "{" in template else template
