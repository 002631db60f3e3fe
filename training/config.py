"""The typed form of a domain's YAML (`configs/<domain>.yaml`)."""

import string
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from training.column_config import IdColumn, LabelColumn, Section, SplitColumn, TableConfig
from training.distillation_config import DistillationConfig
from training.history_config import HistoryConfig
from training.search_config import SearchConfig

Pooling = Literal["mean", "cls", "last"]
READ_LATER = frozenset({"export", "serving", "continual", "sla", "gates", "canary"})
"""The sections that the rooms after training read and validate; no run depends on them."""


class CatalogueConfig(TableConfig):
    """The columns of the catalogue.

    `title` and `text` are a column's name or a template over columns (`"{name}. {colour}"`). `title` may be a list: the
    first entry that is not empty counts. `attributes` maps the domain's attribute names to columns. `released` says
    when an item came out: a year, or an ISO 8601 date.
    `unlabelled: drop` leaves items without a label out and counts them.
    """

    item_id: str
    title: str | tuple[str, ...]
    text: str
    label: LabelColumn
    prior: str | None = None
    released: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    unlabelled: Literal["error", "drop"] = "error"


class InstructionsConfig(TableConfig):
    """The columns of one table of instructions.

    `weak_labels` says that labels were set by rules, not by people. `unlabelled: drop` leaves rows out that have
    neither a label nor relevant items, and counts them. `labels_without_items: keep` makes labels that no item has
    classes of the head; such an instruction counts for labels, not for rankings, unless it names relevant items.
    """

    instruction_id: str | None = None
    text: str
    label: LabelColumn | None = None
    relevant: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    split: SplitColumn
    weak_labels: bool = False
    unlabelled: Literal["error", "drop"] = "error"
    labels_without_items: Literal["error", "keep"] = "error"

    @model_validator(mode="after")
    def _has_a_target(self) -> "InstructionsConfig":
        if self.label is None and self.relevant is None:
            raise ValueError("name a `label` column, a `relevant` column, or both")
        return self


class InteractionsConfig(TableConfig):
    """The columns of the interactions. `unknown_items: ignore` drops and counts events of unknown items."""

    user_id: str
    item_id: IdColumn
    value: str | None = None
    timestamp: str
    unknown_items: Literal["error", "ignore"] = "error"


class UnlabelledConfig(TableConfig):
    """The column of a table of instructions without labels. Texts that are held out elsewhere are left out."""

    text: str


class SyntheticConfig(Section):
    """Instructions made of the catalogue (training/synthetic.py). `phrases` are templates over an item.

    A phrase names `{title}`, `{noun}` (the last two words of the title), `{label}` and the domain's attributes.
    """

    phrases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    per_thousand: int = Field(default=60, ge=1, description="of a label with 1,000 items; grows as the root")
    at_least: int = Field(default=10, ge=0, description="instructions of a label that has few items")
    begun: float = Field(default=0.8, ge=0, le=1, description="share that begins like a real instruction")
    ended: float = Field(default=0.6, ge=0, le=1, description="share that ends like a real instruction")
    weight: float = Field(default=0.3, gt=0, allow_inf_nan=False, description="of one; a given instruction weighs 1")
    seed: int = Field(default=0, ge=0)


def _listed(value: Any) -> Any:
    """One table stands for a list of one."""
    return (value,) if isinstance(value, dict) else value


class SourceConfig(Section):
    """One place a domain's dataset may come from. `instructions` is one table or a list of tables.

    `unlabelled` names instructions without labels, `synthetic` how instructions are made of the catalogue.
    """

    name: str = Field(min_length=1)
    catalogue: CatalogueConfig
    instructions: Annotated[tuple[InstructionsConfig, ...], BeforeValidator(_listed), Field(min_length=1)]
    unlabelled: UnlabelledConfig | None = None
    synthetic: SyntheticConfig | None = None
    interactions: InteractionsConfig | None = None

    @model_validator(mode="after")
    def _phrases_are_known(self) -> "SourceConfig":
        known = {"title", "noun", "label", *self.catalogue.attributes}
        for phrase in self.synthetic.phrases if self.synthetic else ():
            try:
                names = {name for _, name, _, _ in string.Formatter().parse(phrase) if name is not None}
            except ValueError as error:
                raise ValueError(f"synthetic.phrases: {phrase!r} is no template ({error})") from None
            if names - known:
                raise ValueError(
                    f"synthetic.phrases: {phrase!r} names {min(names - known)!r}; there are {sorted(known)}"
                )
        return self

    @model_validator(mode="after")
    def _attributes_are_known(self) -> "SourceConfig":
        named = {name for table in self.instructions for name in table.attributes}
        unknown = sorted(named - set(self.catalogue.attributes))
        if unknown:
            raise ValueError(f"instructions name the attribute {unknown[0]!r}, which the catalogue does not have")
        return self


class EncoderConfig(Section):
    """The encoder: `package:<distribution>`, a local folder, or a hub name. Texts are cut at `max_length` tokens."""

    name: str = Field(min_length=1)
    pooling: Pooling = "mean"
    max_length: int = Field(default=256, ge=3)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class TrainingConfig(Section):
    """How the head and the score weights are tuned."""

    seed: int = Field(default=0, ge=0)
    shots: int | None = Field(default=None, ge=0, description="instructions a label to learn from; None: all there are")
    epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=30, ge=1, description="epochs without a better validation loss before tuning stops")
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    weight_decays: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        default=(0.0, 0.1), min_length=1, description="each is tried, the best on validation is kept"
    )
    ridge_penalties: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1e-4, 1e-5, 1e-6), description="of logistic regressions that are tried beside; empty: none"
    )
    items_per_label: int = Field(default=20, ge=0, description="catalogue items a label that are head examples too")
    item_weight: float = Field(default=0.3, gt=0, allow_inf_nan=False, description="weight of such an example")
    untaught_weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1.0,), min_length=1, description="factors of the weight of all that no person labelled; each is tried"
    )
    class_balance: bool = False
    embedding_batch_size: int = Field(
        default=16, ge=1, description="texts of one length that go through the encoder at a time"
    )
    max_history: int = Field(default=20, ge=1, description="most recent items of a person that count")


class EncoderTuningConfig(Section):
    """Whether and how the encoder's own weights are tuned, before the head is (docs/training.md)."""

    method: Literal["frozen", "lora", "adalora", "bottleneck", "full"] = "frozen"
    rank: int = Field(default=8, ge=1, description="of an adapter; AdaLoRA's mean rank at the end")
    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False, description="an adapter counts alpha / rank times")
    bottleneck_size: int = Field(default=64, ge=1, description="dimensions inside of a bottleneck adapter")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="of an adapter's input")
    target_modules: Literal["all-linear"] | tuple[Annotated[str, Field(min_length=1)], ...] = "all-linear"
    epochs: int = Field(default=6, ge=1)
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1, description="batches to one step of the optimiser")
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="None: by the method")
    head_learning_rate: float = Field(default=0.003, gt=0, allow_inf_nan=False)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_gradient_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    patience: int = Field(default=2, ge=1, description="epochs without a better validation loss before tuning stops")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    items_per_label: int = Field(default=10, ge=0, description="catalogue items a label that are examples too")
    item_weight: float = Field(default=0.3, gt=0, allow_inf_nan=False, description="weight of such an example")
    ranking_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of the in-batch ranking loss")
    rivals: int = Field(default=1, ge=0, description="items of the same label that do not answer, an instruction")
    temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False, description="of the in-batch ranking loss")

    @property
    def encoder_learning_rate(self) -> float:
        """The learning rate of the encoder: as given, else what suits the method."""
        return self.learning_rate or {"full": 5e-5, "adalora": 5e-3}.get(self.method, 1e-3)

    def fingerprinted(self) -> dict[str, Any]:
        """The settings that make a run another one, with the learning rate that None stands for."""
        settings = {**self.model_dump(mode="json"), "learning_rate": self.encoder_learning_rate}
        if self.method != "bottleneck":
            del settings["bottleneck_size"]
        return settings


class SelfTrainingConfig(Section):
    """Labels for the source's unlabelled instructions, by a teacher (training/pseudo_labels.py).

    With `names`, those instructions are learned from that name or mean one label, and have it where the teacher bears
    with it.
    """

    teacher: str = Field(min_length=1, description="a run's folder or id")
    names: bool = Field(default=False, description="labels are those that the words say, not those the teacher finds")
    confidence: float = Field(default=0.6, ge=0, le=1, description="least mean of probability and votes")
    nearest: float = Field(default=0.5, gt=0, le=1, description="share of the texts, those nearest to some item")
    per_label: int = Field(default=100, ge=1, description="at most so many of a label")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="of one; a given instruction weighs 1")
    seed: int = Field(default=0, ge=0)


class TrackingConfig(Section):
    """Where a tuning's losses and metrics can be watched (docs/search.md). It changes nothing of the run."""

    backend: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    project: str = Field(default="instructrec", min_length=1, description="the project in Weights & Biases")
    mode: Literal["offline", "online"] = Field(default="offline", description="offline: nothing leaves the machine")


class DomainConfig(Section):
    """A whole domain. The last sections (`READ_LATER`) are validated by the rooms that read them."""

    domain: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    encoder: EncoderConfig
    init_from: str | None = Field(
        default=None, min_length=1, description="a run's folder or id: start from its encoder, not from encoder.name"
    )
    training: TrainingConfig = TrainingConfig()
    encoder_tuning: EncoderTuningConfig = EncoderTuningConfig()
    self_training: SelfTrainingConfig | None = None
    distillation: DistillationConfig | None = None
    tracking: TrackingConfig = TrackingConfig()
    search: SearchConfig = SearchConfig()
    history: HistoryConfig = HistoryConfig()
    export: dict[str, Any] = Field(default_factory=dict)
    serving: dict[str, Any] = Field(default_factory=dict)
    continual: dict[str, Any] = Field(default_factory=dict)
    sla: dict[str, Any] = Field(default_factory=dict)
    gates: dict[str, Any] = Field(default_factory=dict)
    canary: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _source_names_differ(self) -> "DomainConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {names}")
        return self

    @model_validator(mode="after")
    def _something_is_taught(self) -> "DomainConfig":
        tuned = self.encoder_tuning.method != "frozen"
        fewest = min([self.training.items_per_label, *([self.encoder_tuning.items_per_label] if tuned else [])])
        if self.training.shots == 0 and fewest == 0:
            where = "encoder_tuning" if self.training.items_per_label else "training"
            raise ValueError(f"training.shots=0 leaves only items to learn from; set {where}.items_per_label above 0")
        return self

    @model_validator(mode="after")
    def _student_is_not_tuned(self) -> "DomainConfig":
        if self.distillation is not None and self.encoder_tuning.method != "frozen":
            raise ValueError("`distillation` and `encoder_tuning` exclude each other: tune the teacher, then distil")
        return self
