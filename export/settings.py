"""The `serving:` and `export:` sections of a domain's YAML, as export reads them."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from export.errors import ExportError
from training.config import DomainConfig

Precision = Literal["fp32", "int8", "fp16", "trt-fp16", "trt-int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "fp16", "trt-fp16", "trt-int8")

Mode = Literal["ensemble", "fused"]
Engine = Literal["onnxruntime", "openvino"]

LENGTH_MULTIPLES: dict[Engine, int] = {"onnxruntime": 1, "openvino": 16}
"""Lengths at multiples of this give answers that do not depend on padding: see `OpenVinoEngine`."""

SHORTEST_BUCKET = 4
"""Two special tokens, and something between them."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TopkSettings(_Section):
    """How the best items are found.

    Attributes:
        index: `exact` scores every item that can be among the best; `approximate` looks into an index; `auto` takes
            the index for large catalogues.
        recall: the least mean share of the exact best 10 that an index must find on held-out instructions.
    """

    index: Literal["auto", "exact", "approximate"] = "auto"
    recall: float = Field(default=0.99, gt=0, le=1)


class ServingSettings(_Section):
    """How the steps are served; written into their config.pbtxt.

    Attributes:
        mode: four steps that Triton joins, or all in one; the same answers (docs/serving.md).
        engine: what runs the encoder on the CPU.
        length_buckets: ascending padded lengths, in tokens; the last one served is always the encoder's limit.
        max_batch_size: rows in one execution of a step, and in one request.
        max_queue_delay_microseconds: how long the encoder, or the fused step, waits for a batch to
            fill while it is idle.
        max_queue_size: requests that may wait; above, they are refused with UNAVAILABLE. 0: any number.
        encoder_instances: encoder sessions side by side.
        encoder_threads: threads of each; instances × threads must not exceed the cores.
        topk: how the best items are found.
        share_steps: whether tokenizer and encoder are named by their content, so that domains with equal ones serve
            from one loaded copy (docs/serving.md).
    """

    mode: Mode = "ensemble"
    engine: Engine = "onnxruntime"
    length_buckets: tuple[int, ...] = (16, 32, 64, 128, 256)
    max_batch_size: int = Field(default=32, ge=32, le=1024)
    max_queue_delay_microseconds: int = Field(default=0, ge=0, le=1_000_000)
    max_queue_size: int = Field(default=256, ge=0)
    encoder_instances: int = Field(default=1, ge=1, le=1024)
    encoder_threads: int = Field(default=1, ge=1, le=1024)
    topk: TopkSettings = TopkSettings()
    share_steps: bool = False

    @field_validator("length_buckets")
    @classmethod
    def _ascending(cls, buckets: tuple[int, ...]) -> tuple[int, ...]:
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < SHORTEST_BUCKET:
            raise ValueError(f"must be lengths of at least {SHORTEST_BUCKET} tokens in ascending order")
        return buckets

    def buckets_up_to(self, limit: int) -> tuple[int, ...]:
        """The buckets of an encoder that reads at most `limit` tokens.

        The last is that limit, so that no text is cut shorter when served than it was at training.
        """
        return (*(bucket for bucket in self.length_buckets if bucket < limit), limit)


class Int8Section(_Section):
    """What may be chosen of INT8.

    Attributes:
        reduce_range: 7-bit weights, whose sums overflow on no CPU; for x86 without VNNI (docs/export.md).
    """

    reduce_range: bool = False


class ExportSettings(_Section):
    """How graphs are made and verified.

    Attributes:
        calibration_texts: how many texts the INT8 ranges are measured on, half instructions, half items.
        verification_texts: how many instructions a graph is held against torch on.
        task_instructions: on how many test instructions the release's results are kept, for later ones to be compared.
        encoder_from: another domain, whose newest release's encoder graph is taken instead of making one; it is
            verified on this domain's texts all the same.
        int8: how INT8 graphs for CPUs are made.
    """

    calibration_texts: int = Field(default=256, ge=1)
    verification_texts: int = Field(default=256, ge=2)
    task_instructions: int = Field(default=1_000, ge=0)
    encoder_from: str | None = None
    int8: Int8Section = Int8Section()


Section = TypeVar("Section", bound=_Section)


def read_section(kind: type[Section], name: str, values: dict[str, Any]) -> Section:
    """Validate a section of the config.

    Raises:
        ExportError: an unknown key or a bad value; the message names it.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        known = ", ".join(kind.model_fields)
        raise ExportError(f"config: {where}: {first['msg']} (the section knows {known})") from None


def read_settings(config: DomainConfig, precision: Precision) -> tuple[ServingSettings, ExportSettings]:
    """The sections of a config that an export reads.

    Raises:
        ExportError: a setting is wrong, or the way of serving has no place for an encoder of that precision.
    """
    serving = read_section(ServingSettings, "serving", config.serving)
    if precision.startswith("trt-") and (serving.mode == "fused" or serving.engine == "openvino"):
        raise ExportError(
            f"{precision} is an encoder of its own on a GPU: set serving.mode to ensemble and serving.engine to "
            f"onnxruntime, not {serving.mode} and {serving.engine}"
        )
    return serving, read_section(ExportSettings, "export", config.export)
