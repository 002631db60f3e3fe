"""The section `continual:` of a domain's YAML."""

from __future__ import annotations

import hashlib
import itertools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.config import EncoderTuningConfig

from .errors import ContinualError
from .head_update import Anchor


class EventWeights(BaseModel):
    """What an event counts as evidence that its item's label was meant. 0: not at all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    click: float = Field(default=1.0, ge=0)
    add: float = Field(default=2.0, ge=0)
    purchase: float = Field(default=3.0, ge=0)
    rating: float = Field(default=2.0, ge=0)


class LoraSettings(BaseModel):
    """How the encoder learns with the head, where it does; what is not here is as in the run's `encoder_tuning`.

    Attributes:
        rank, alpha, dropout: of the adapters; what they add counts alpha / rank times.
        epochs: at most; the best on validation is kept.
        batch_size: texts to a step.
        learning_rate: of the adapters.
        weight_decay: pulls the adapters' factors towards zero, and so the encoder towards the live one, which is where
            they begin: decoupled, after each step (AdamW, arXiv 1711.05101).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class ContinualSettings(BaseModel):
    """How feedback becomes a head, and by choice an encoder.

    Attributes:
        weights: of the kinds of events. Impressions never count.
        positive_rating: the least rating that says that the item was meant.
        max_events: how many events are read for one head, the oldest first; the next one reads on from there.
        person_weight: what all of one person's events in a batch weigh at most.
        anonymous_weight: likewise of all events without a person, together.
        label_events: a label with fewer events in the batch is left out.
        label_people: a label with events of fewer people is left out; all without a user id are one.
        held_out: the share of people whose events are not learned from, but measured on.
        replay: how many old training instructions are learned again, at most.
        replay_items: catalogue items a label that are learned again too.
        replay_item_weight: of such an item; an instruction weighs 1.
        replay_ratio: the weight of all that is learned again over that of all that is new.
        penalties, distillations: what holds the new head near the live one (`Anchor`). All pairs are tried, the best on
            validation is kept.
        fisher: what else holds it.
        encoder: whether the encoder learns too, by low-rank adapters that are merged into it (LoRA, arXiv 2106.09685).
        lora: how it does.
        budget: points of accuracy that a new head may lose to the live one, on old held-out instructions, on earlier
            held-out feedback and on the new.
        drift_budget: points of accuracy on old held-out instructions that all turns together may lose to the head as it
            was trained.
        remembered: how many examples a derived run keeps, this batch's and those before, to be replayed later.
        seed: of what is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: EventWeights = EventWeights()
    positive_rating: float = 4.0
    max_events: int = Field(default=20_000, ge=1)
    person_weight: float = Field(default=5.0, gt=0)
    anonymous_weight: float = Field(default=50.0, gt=0)
    label_events: int = Field(default=5, ge=1)
    label_people: int = Field(default=3, ge=1)
    held_out: float = Field(default=0.2, ge=0, lt=1)
    replay: int = Field(default=5_000, ge=0)
    replay_items: int = Field(default=5, ge=0)
    replay_item_weight: float = Field(default=0.3, gt=0)
    replay_ratio: float = Field(default=8.0, ge=0)
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(3e-6, 3e-5, 3e-4), min_length=1)
    distillations: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 1.0), min_length=1)
    fisher: float = Field(default=0.0, ge=0)
    encoder: Literal["frozen", "lora"] = "frozen"
    lora: LoraSettings = LoraSettings()
    budget: float = Field(default=1.0, ge=0)
    drift_budget: float = Field(default=3.0, ge=0)
    remembered: int = Field(default=2_000, ge=0)
    seed: int = Field(default=0, ge=0)

    @property
    def anchors(self) -> list[Anchor]:
        """All that is tried to hold the head."""
        pairs = itertools.product(self.penalties, self.distillations)
        return [Anchor(penalty, self.fisher, distillation) for penalty, distillation in pairs]

    def encoder_tuning(self, of_run: EncoderTuningConfig) -> EncoderTuningConfig:
        """How the encoder is tuned, where the run's was, or would have been, as in `of_run`."""
        own = {"seed": self.seed, "items_per_label": self.replay_items, "item_weight": self.replay_item_weight}
        # In float32 on any machine: the run may have been tuned on another.
        return of_run.model_copy(update={"method": "lora", "precision": "float32", **own, **self.lora.model_dump()})

    @property
    def fingerprint(self) -> str:
        """Tells whether the same feedback may come to something else."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def read(cls, section: dict[str, Any]) -> ContinualSettings:
        """Validate the section.

        Raises:
            ContinualError: an unknown key or a bad value; the message names it.
        """
        try:
            return cls.model_validate(section)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["continual", *(str(part) for part in first["loc"])])
            known = ", ".join(cls.model_fields)
            raise ContinualError(f"config: {where}: {first['msg']} (the section knows {known})") from None
