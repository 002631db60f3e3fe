"""The typed form of a YAML's `history` section: how people's interactions are learned from and measured."""

from typing import Literal

from pydantic import Field, model_validator

from training.column_config import Section


class HistoryConfig(Section):
    """What interactions teach (docs/datasets.md, "Interactions"). The defaults need none."""

    prior: Literal["catalogue", "recency"] = Field(
        default="catalogue", description="the catalogue's column, or learned from how often and how lately people chose"
    )
    vectors: Literal["text", "behaviour"] = Field(
        default="text", description="whose product is the history term: item vectors, or factors of co-occurrence"
    )
    taste: bool = Field(
        default=False,
        description="behaviour vectors with dimensions for how much a person follows what is new and popular",
    )
    exclude_seen: bool = Field(default=False, description="leave the items of a request's history out of its answer")
    refresh_days: float = Field(
        default=7, gt=0, le=3650, allow_inf_nan=False, description="between the releases that the measurement imitates"
    )
    minimum_events: int = Field(default=5, ge=2, description="of a person, to be measured")
    dimensions: int = Field(default=64, ge=1, le=1024, description="of a behaviour vector")
    shrinkage: float = Field(
        default=10, ge=0, allow_inf_nan=False, description="events' worth of doubt in a co-occurrence"
    )
    half_life_days: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="after which an event counts half in a co-occurrence"
    )

    @model_validator(mode="after")
    def _taste_has_what_it_blends(self) -> "HistoryConfig":
        if self.taste and (self.prior != "recency" or self.vectors != "behaviour"):
            raise ValueError("taste needs `prior: recency` and `vectors: behaviour`; set them, or leave taste out")
        return self
