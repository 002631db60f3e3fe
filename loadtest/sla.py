"""The SLA that a domain promises, and the verdict on a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.errors import LoadTestError
from loadtest.summary import Summary

__all__ = ["Criterion", "Sla", "Verdict", "read_sla"]

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Criterion(BaseModel):
    """One bar, and what was measured against it.

    Attributes:
        name: The key of the bar in the `sla:` section.
        bar: The value promised.
        side: Whether the measured value may be `at most` or must be `at least` the bar.
        measured: The value; None where the run gave none, which does not meet any bar.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bar: float
    side: Literal["at most", "at least"]
    measured: float | None
    met: bool


class Verdict(BaseModel):
    """Every criterion of an SLA, judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    criteria: tuple[Criterion, ...]
    met: bool


class Sla(BaseModel):
    """What a domain promises; every bar is optional, one at least is needed. Errors are always judged.

    Attributes:
        p50_ms: Half of the answers come within this many milliseconds.
        p95_ms: 95 in 100 do.
        p99_ms: 99 in 100 do.
        max_error_rate: The largest share of requests that may fail, 0 to 1; none where left out.
        min_requests_per_second: Right answers a second, at least, under closed-loop load.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    p50_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _promises_something(self) -> Sla:
        if not any(bar is not None for bar in self.model_dump(include=self.model_fields_set).values()):
            raise ValueError(f"it promises nothing: set at least one of {', '.join(type(self).model_fields)}")
        return self

    def verdict(self, measured: Summary, *, rate_is_given: bool = False) -> Verdict:
        """Judge a run.

        Args:
            measured: What the run measured.
            rate_is_given: Whether the load came at a rate chosen by the caller, so that `min_requests_per_second` says
                nothing about the server.
        """
        criteria = [
            _at_most("p50_ms", self.p50_ms, measured.p50_ms),
            _at_most("p95_ms", self.p95_ms, measured.p95_ms),
            _at_most("p99_ms", self.p99_ms, measured.p99_ms),
            _at_most("max_error_rate", self.max_error_rate, measured.error_rate),
        ]
        if not rate_is_given:
            name = "min_requests_per_second"
            criteria.append(_at_least(name, self.min_requests_per_second, measured.requests_per_second))
        judged = tuple(criterion for criterion in criteria if criterion is not None)
        return Verdict(criteria=judged, met=all(criterion.met for criterion in judged))


def read_sla(path: Path, overrides: Iterable[str] = ()) -> Sla:
    """Read the `sla:` section of a domain's YAML.

    Args:
        path: The YAML.
        overrides: `sla.p99_ms=50`; those of other sections are left to the rooms that read them.

    Raises:
        LoadTestError: The file cannot be read, or the section or an override is missing or wrong; the message names the
            key.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path}: cannot read the configuration: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # what looks like a date is made one: 2024-13-01 is none
        raise LoadTestError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    section = content.get("sla") if isinstance(content, dict) else None
    changes = dict(_changes(overrides))
    if changes and section is None:
        section = {}
    if not isinstance(section, dict):
        raise LoadTestError(f"{path}: no `sla:` section: add one with at least one of {', '.join(Sla.model_fields)}")
    try:
        return Sla.model_validate(section | changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["sla", *map(str, first["loc"])])
        raise LoadTestError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _changes(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for override in overrides:
        name, separator, text = override.partition("=")
        section, _, key = name.partition(".")
        if section != "sla":
            continue
        if not separator or key not in Sla.model_fields:
            raise LoadTestError(
                f"override {override!r}: write it as sla.KEY=VALUE, KEY of {', '.join(Sla.model_fields)}"
            )
        try:
            yield key, yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise LoadTestError(f"override {override!r}: the value is not valid YAML: write a number") from None


def _at_most(name: str, bar: float | None, measured: float | None) -> Criterion | None:
    if bar is None:
        return None
    return Criterion(
        name=name, bar=bar, side="at most", measured=measured, met=measured is not None and measured <= bar
    )


def _at_least(name: str, bar: float | None, measured: float) -> Criterion | None:
    if bar is None:
        return None
    return Criterion(name=name, bar=bar, side="at least", measured=measured, met=measured >= bar)
