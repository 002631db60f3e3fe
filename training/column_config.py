"""The typed form of columns that say more than their name: labels, splits and translated ids."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from training.dataset import Split

Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """What every section of the YAML is: unknown keys are refused, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TableConfig(Section):
    """Where one table lies, relative to the data directory. Cells equal to one of `missing` are read as empty."""

    file: str = Field(min_length=1)
    missing: tuple[str, ...] = ()


def _named(value: Any) -> Any:
    """A column's bare name is the short form of `{column: <name>}`."""
    return {"column": value} if isinstance(value, str) else value


class LabelSettings(Section):
    """Which label a row has.

    The cell of `column` is one value; with `separator` it is a list of values, with `key` a JSON object whose value at
    that key counts. A value is looked up in `map`, if there is one; `unmapped` says what becomes of a value that is
    not there. The first value that gives a label counts; `default` is the label of a row whose values give none.
    """

    column: Name
    separator: Name | None = None
    key: Name | None = None
    map: dict[str, Name] = {}
    unmapped: Literal["error", "keep", "skip"] = "error"
    default: Name | None = None


class SplitSettings(Section):
    """Which split a row is in: given by `column` (through `map`, if there is one), drawn, or both.

    `draw` gives each split its share. It divides the rows that `column` gives as `train`; all rows without a column.
    Rows with the same cell in the column `by` stay together; rows with the same text where there is no `by`.
    """

    column: Name | None = None
    map: dict[str, Split] = {}
    draw: dict[Split, float] = {}
    by: Name | None = None
    stratify: Literal["label"] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_whole(self) -> "SplitSettings":
        if self.column is None and not self.draw:
            raise ValueError("name a `column`, or `draw` the splits, as {train: 0.8, validation: 0.1, test: 0.1}")
        if self.map and self.column is None:
            raise ValueError("`map` needs the `column` whose values it maps")
        if not self.draw and (self.by or self.stratify):
            raise ValueError("`by` and `stratify` say how to `draw`; add `draw` or remove them")
        shares = self.draw.values()
        if self.draw and ("train" not in self.draw or not all(share > 0 for share in shares)):
            raise ValueError("`draw` must give `train` a share, and every share must be above 0")
        if self.draw and not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of `draw` sum to {sum(shares):g}; make them sum to 1")
        return self


class TranslationTable(TableConfig):
    """A table that translates ids: the cell of `key` becomes the cell of `value`."""

    key: Name
    value: Name


class IdSettings(Section):
    """A column of ids; with `via` each is translated. An id without a translation is unknown."""

    column: Name
    via: TranslationTable | None = None


LabelColumn = Annotated[LabelSettings, BeforeValidator(_named)]
SplitColumn = Annotated[SplitSettings, BeforeValidator(_named)]
IdColumn = Annotated[IdSettings, BeforeValidator(_named)]
