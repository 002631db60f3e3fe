"""The typed form of the section `search`: which settings a search draws, and how it judges them."""

import json
import math
from typing import Any, Literal

from pydantic import Field, model_validator

from training.column_config import Section


class Dimension(Section):
    """The values of one setting: from `low` to `high`, drawn evenly or on a logarithmic scale, or one of `choices`.

    Two whole numbers as ends draw whole numbers; write `0.0` or `1.0` where fractions are meant.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> "Dimension":
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("give either `choices` or `low` and `high`")
            if len({json.dumps(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("a choice stands there twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `low` and `high`, or `choices`")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("`low` and `high` must be finite, and `low` the smaller one")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic scale starts above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to try whether the setting can take what is drawn: all choices, or both ends."""
        return (self.low, self.high) if self.choices is None else self.choices


class SearchConfig(Section):
    """What `make search` searches (docs/search.md). It changes nothing of a run.

    The keys of `space` are those of the YAML, with dots: `training.learning_rate: {low: 0.01, high: 1.0, log: true}`.
    """

    trials: int = Field(default=20, ge=1, description="of the whole study, however often it is resumed")
    metric: Literal["validation_loss", "validation_top1_accuracy"] = "validation_loss"
    pruner: Literal["median", "hyperband", "none"] = Field(default="median", description="judges after each epoch")
    seed: int = Field(default=0, ge=0, lt=2**32)
    space: dict[str, Dimension] = Field(default_factory=dict)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which way the metric is better."""
        return "minimize" if self.metric == "validation_loss" else "maximize"
