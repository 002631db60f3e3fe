"""The typed form of a domain's YAML (`configs/<domain>.yaml`)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pooling = Literal["mean", "cls", "last"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TableConfig(_Section):
    """Where one table lies, relative to the data directory. Cells equal to one of `missing` are read as empty."""

    file: str = Field(min_length=1)
    missing: tuple[str, ...] = ()


class CatalogueConfig(TableConfig):
    """The columns of the catalogue.

    `title` and `text` are a column's name or a template over columns (`"{name}. {colour}"`). `title` may be a list: the
    first entry that is not empty counts. `attributes` maps the domain's attribute names to columns.
    """

    item_id: str
    title: str | tuple[str, ...]
    text: str
    label: str
    prior: str | None = None
    attributes: dict[str, str] = {}


class InstructionsConfig(TableConfig):
    """The columns of the instructions. `weak_labels` says that labels were set by rules, not by people."""

    instruction_id: str | None = None
    text: str
    label: str | None = None
    relevant: str | None = None
    attributes: dict[str, str] = {}
    split: str
    weak_labels: bool = False

    @model_validator(mode="after")
    def _has_a_target(self) -> "InstructionsConfig":
        if self.label is None and self.relevant is None:
            raise ValueError("name a `label` column, a `relevant` column, or both")
        return self


class InteractionsConfig(TableConfig):
    """The columns of the interactions. `unknown_items: ignore` drops and counts events of unknown items."""

    user_id: str
    item_id: str
    value: str | None = None
    timestamp: str
    unknown_items: Literal["error", "ignore"] = "error"


class SourceConfig(_Section):
    """One place a domain's dataset may come from."""

    name: str = Field(min_length=1)
    catalogue: CatalogueConfig
    instructions: InstructionsConfig
    interactions: InteractionsConfig | None = None

    @model_validator(mode="after")
    def _attributes_are_known(self) -> "SourceConfig":
        unknown = sorted(set(self.instructions.attributes) - set(self.catalogue.attributes))
        if unknown:
            raise ValueError(f"instructions name the attribute {unknown[0]!r}, which the catalogue does not have")
        return self


class EncoderConfig(_Section):
    """The encoder: `package:<distribution>`, a local folder, or a hub name. Texts are cut at `max_length` tokens."""

    name: str = Field(min_length=1)
    pooling: Pooling = "mean"
    max_length: int = Field(default=256, ge=3)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class TrainingConfig(_Section):
    """How the head and the score weights are tuned."""

    seed: int = Field(default=0, ge=0)
    epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=30, ge=1, description="epochs without a better validation loss before tuning stops")
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    weight_decays: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        default=(0.0, 0.1), min_length=1, description="each is tried, the best on validation is kept"
    )
    items_per_label: int = Field(default=20, ge=0, description="catalogue items a label that are head examples too")
    item_weight: float = Field(default=0.3, gt=0, allow_inf_nan=False, description="weight of such an example")
    class_balance: bool = False
    embedding_batch_size: int = Field(default=64, ge=1)
    max_history: int = Field(default=20, ge=1, description="most recent items of a person that count")


class EncoderTuningConfig(_Section):
    """Whether and how the encoder's own weights are tuned, before the head is (docs/training.md)."""

    method: Literal["frozen", "lora", "adalora", "full"] = "frozen"
    rank: int = Field(default=8, ge=1, description="of an adapter; AdaLoRA's mean rank at the end")
    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False, description="an adapter counts alpha / rank times")
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
    temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False, description="of the in-batch ranking loss")

    @property
    def encoder_learning_rate(self) -> float:
        """The learning rate of the encoder: as given, else what suits the method."""
        return self.learning_rate or {"full": 5e-5}.get(self.method, 1e-3)


class DomainConfig(_Section):
    """A whole domain. `export`, `serving` and `sla` are validated by the rooms that read them."""

    domain: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    encoder: EncoderConfig
    training: TrainingConfig = TrainingConfig()
    encoder_tuning: EncoderTuningConfig = EncoderTuningConfig()
    export: dict[str, Any] = {}
    serving: dict[str, Any] = {}
    sla: dict[str, Any] = {}

    @model_validator(mode="after")
    def _source_names_differ(self) -> "DomainConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {names}")
        return self
