"""The typed form of the section `distillation`."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from training.column_config import Section


class DistillationConfig(Section):
    """Layer pruning: some layers of a run's encoder, taught to do what all of them do (docs/training.md)."""

    teacher: str = Field(min_length=1, description="folder or id of the run whose encoder is pruned")
    layers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=3, description="how many are kept, spread evenly with the first and the last; or which, from 0"
    )
    texts: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=2000, description="catalogue items, drawn, whose text and title are learned from"
    )
    epochs: int = Field(default=4, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    patience: int = Field(default=2, ge=1, description="epochs without a better validation loss before it stops")
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="softens both label distributions")
    label_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="of the label distributions")
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("layers")
    @classmethod
    def _is_in_order(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and (not value or any(second <= first for first, second in pairwise(value))):
            raise ValueError(f"list the layers to keep in ascending order, each once, as [0, 2, 5]; got {list(value)}")
        return value
