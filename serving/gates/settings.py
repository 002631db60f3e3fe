"""The `gates:` and `canary:` sections of a domain's YAML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ServingError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GateSettings(_Section):
    """How much worse than the live release a release may be.

    Attributes:
        accuracy_margin: how far the head's accuracy may fall at most, as a share of 1.
        ndcg_margin: how far NDCG@10 may.
        min_instructions: so many test instructions the two must share at least.
        latency_ratio: the time of an answer may be at most so many times the live release's.
    """

    accuracy_margin: float = Field(default=0.05, gt=0, le=1)
    ndcg_margin: float = Field(default=0.03, gt=0, le=1)
    min_instructions: int = Field(default=50, ge=2)
    latency_ratio: float = Field(default=2.0, gt=0)

    @property
    def margins(self) -> dict[str, float]:
        """How far each metric may fall, by the name it has in a release's evidence."""
        return {"top-1 label accuracy": self.accuracy_margin, "NDCG@10": self.ndcg_margin}


class CanarySettings(_Section):
    """How a canary is judged.

    Attributes:
        event: the kind of feedback that counts as a success, of the items shown; None: feedback is not judged.
        feedback_margin: its rate may fall by at most this share of the live release's rate.
        min_people: so many people with an impression each of the two needs before feedback is judged.
        error_margin: the share of failed requests may be higher by at most this much.
        latency_ratio: the time of an answer may be at most so many times the live release's.
    """

    event: Literal["click", "add", "purchase"] | None = "click"
    feedback_margin: float = Field(default=0.1, gt=0, le=1)
    min_people: int = Field(default=100, ge=20)
    error_margin: float = Field(default=0.01, gt=0, le=1)
    latency_ratio: float = Field(default=2.0, gt=0)


@dataclass(frozen=True)
class Settings:
    """Both sections."""

    gates: GateSettings
    canary: CanarySettings


def read_settings(path: Path | None, overrides: Iterable[str] = ()) -> Settings:
    """Read both sections of a YAML; what it does not name has its default.

    Args:
        path: the domain's YAML; None: the defaults.
        overrides: `gates.latency_ratio=2`; those of other sections are left to the rooms that read them.

    Raises:
        ServingError: the file cannot be read, or a key or value of the sections is wrong.
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(f"{path} cannot be read: {error}") from None
        except (yaml.YAMLError, ValueError) as error:  # what looks like a date is made one: 2024-13-01 is none
            raise ServingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ServingError(f"{path} is no mapping of sections")
    sections: dict[str, Any] = {name: content.get(name) or {} for name in ("gates", "canary")}
    for override in overrides:
        _apply(sections, override)
    return Settings(
        gates=_section(GateSettings, "gates", sections["gates"]),
        canary=_section(CanarySettings, "canary", sections["canary"]),
    )


def _apply(sections: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, *names = key.split(".")
    if section not in sections:
        return
    if not separator or not names:
        raise ServingError(f"override {override!r}: write it as gates.<key>=<value>")
    node = sections[section]
    try:
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = yaml.safe_load(text)
    except (AttributeError, TypeError, ValueError, yaml.YAMLError):
        raise ServingError(f"override {override!r}: no such key, or no YAML value") from None


def _section(kind: type[Any], name: str, values: Any) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise ServingError(f"{where}: {first['msg']} (the section knows {', '.join(kind.model_fields)})") from None
