"""Checks a search's space against the config, and turns it into Optuna's distributions and back into settings."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from training.config import DomainConfig
from training.config_loading import change_config
from training.errors import ConfigError
from training.search_config import Dimension

# They change what is measured, or nothing of it: a trial tunes encoder and head alone.
NOT_SEARCHED = (
    "domain",
    "sources",
    "training.shots",
    "training.max_history",
    "distillation",
    "tracking",
    "search",
    "history",
    "export",
    "serving",
    "continual",
    "sla",
    "gates",
    "canary",
)


def check_space(config: DomainConfig) -> None:
    """Make sure that each setting of the space exists, can take the values it may draw, and has an effect.

    Raises:
        ConfigError: The space is empty, a key or value of it is wrong, or the config distils, which no trial does.
    """
    space = config.search.space
    if not space:
        raise ConfigError(
            "search.space is empty; name settings to search, as "
            "search.space: {training.learning_rate: {low: 0.01, high: 1.0, log: true}}"
        )
    if config.distillation is not None:
        raise ConfigError("search: no trial distils; leave `distillation` out, and search the settings of its teacher")
    drawing = () if config.training.shots is None else ("training.seed",)  # it draws the validation split then
    for key, dimension in space.items():
        if any(f"{key}.".startswith(f"{name}.") for name in (*NOT_SEARCHED, *drawing)):
            raise ConfigError(f"search.space: {key!r} cannot be searched; what tunes the model can")
        for value in dimension.ends:
            change_config(config, {key: value}, where="search.space")
    method = space.get("encoder_tuning.method")
    methods = set(method.ends) if method else {config.encoder_tuning.method}
    idle = [key for key in space if key.startswith("encoder_tuning.")]
    if idle and methods == {"frozen"}:
        raise ConfigError(
            f"search.space: {idle[0]!r} has no effect while encoder_tuning.method is frozen; "
            "set encoder_tuning.method=lora, or search it too"
        )


def distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """Optuna's form of the space. A choice is kept as JSON text, for a study's database takes no lists."""
    return {key: _distribution(dimension) for key, dimension in space.items()}


def settings_of(space: Mapping[str, Dimension], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a trial has drawn, by the dotted keys of the config."""
    return {key: json.loads(value) if space[key].choices is not None else value for key, value in drawn.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    low, high = dimension.low, dimension.high
    if dimension.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log)
    return FloatDistribution(float(low or 0.0), float(high or 0.0), log=dimension.log)
