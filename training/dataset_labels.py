"""Reads the label of each row out of a label column: a value, a list of values, or a JSON object."""

import json

from training.column_config import LabelSettings
from training.dataset_tables import Table, shorten


def read_labels(table: Table, config: LabelSettings) -> list[str]:
    """The label of each row, `""` where its values give none and there is no default.

    Raises:
        DatasetError: The column is missing, a cell is not JSON where `key` is set, or `map` lacks a value.
    """
    labels: list[str] = []
    problems: dict[int, tuple[str, str]] = {}  # the problem of a row, and its fix
    for row, cell in enumerate(table.column(config.column)):
        label = ""
        try:
            label = _label(_values(cell, config), config)
        except (ValueError, RecursionError):
            problems[row] = "the cell is not a JSON object", "write one, or leave `key` out"
        except KeyError as error:
            problem = f"the label's map has no entry for {shorten(error.args[0])}"
            problems[row] = problem, "add it to the map, or set unmapped to keep or skip"
        labels.append(label or config.default or "")
    if problems:
        problem, fix = problems[min(problems)]
        alike = [row in problems and problems[row][1] == fix for row in range(len(labels))]
        table.reject(alike, config.column, problem, fix)
    return labels


def _values(cell: str, config: LabelSettings) -> list[str]:
    if config.key is not None and cell:
        value = json.loads(cell)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        found = value.get(config.key)
        values = found if isinstance(found, list) else [found]
        return [text for value in values if value is not None and (text := str(value).strip())]
    values = cell.split(config.separator) if config.separator else [cell]
    return [value.strip() for value in values if value.strip()]


def _label(values: list[str], config: LabelSettings) -> str:
    """The first label among the values; raises KeyError for a value that must be mapped and is not."""
    for value in values:
        if value in config.map:
            return config.map[value]
        if not config.map or config.unmapped == "keep":
            return value
        if config.unmapped == "error":
            raise KeyError(value)
    return ""
