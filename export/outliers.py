"""What is done about the channels of an activation that stand out, before all of it gets one scale.

One scale a tensor makes room for the widest channel, and leaves the others few codes. Three ways, cheapest first when
served: nothing; smoothing, which takes a multiplication of the whole tensor; a few channels left out of the INT8
product and multiplied in FP32 beside it (as in LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, with channels that
calibration fixes). Which one an activation gets is measured, not known beforehand.

Smoothing is SmoothQuant's (Xiao et al. 2023, arXiv 2211.10438): x W = (x / s)(s W), with
s_j = max|x_j|^a / max|w_j|^(1 - a).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.calibration import Activation
from export.qdq import rounded, unsigned_scale

__all__ = ["Treatment", "choose_treatment"]

Floats = npt.NDArray[np.float32]

_WORTH_IT = 1.25  # a dearer way must make the squared error smaller by this factor


@dataclass(frozen=True)
class Treatment:
    """How the outliers of one activation are dealt with.

    Attributes:
        inverse_smoothing: What the activation is multiplied by before it is quantised, [C]; ones where nothing is.
        exact: Channels, ascending, that are multiplied in FP32; they have no part in the scale.
        low: Least value of the smoothed activation in the other channels, at most 0.
        high: Its greatest value there, at least 0.
    """

    inverse_smoothing: Floats
    exact: npt.NDArray[np.int64]
    low: float
    high: float


def choose_treatment(activation: Activation, weight: Floats, exponent: float, exact_channels: int) -> Treatment:
    """Takes the cheapest way whose error on the calibration sample is near the least.

    Args:
        activation: What calibration saw.
        weight: The weights that the activation is multiplied by, side by side, [C, outputs].
        exponent: SmoothQuant's a; 0 leaves smoothing out of the choice.
        exact_channels: How many channels may be multiplied in FP32; 0 leaves this way out.
    """
    ways = [_treatment(activation, np.ones(len(weight), dtype=np.float32))]
    if exponent:
        ways.append(_treatment(activation, _smoothing(activation, weight, exponent)))
    if exact_channels:
        ways.append(_treatment(activation, ways[0].inverse_smoothing, exact_channels))
    errors = [_error(activation, weight, way) for way in ways]
    return next(way for way, error in zip(ways, errors, strict=True) if error <= _WORTH_IT * min(errors))


def _treatment(activation: Activation, smoothing: Floats, exact_channels: int = 0) -> Treatment:
    low, high = activation.low / smoothing, activation.high / smoothing
    widest = np.argsort(-np.maximum(-low, high), kind="stable")
    exact, coded = np.sort(widest[:exact_channels]), widest[exact_channels:]
    return Treatment(
        inverse_smoothing=(1 / smoothing).astype(np.float32),
        exact=exact.astype(np.int64),
        low=min(float(low[coded].min(initial=0)), 0.0),  # zero must have an exact code
        high=max(float(high[coded].max(initial=0)), 0.0),
    )


def _error(activation: Activation, weight: Floats, way: Treatment) -> float:
    scale, zero_point = unsigned_scale(way.low, way.high)
    smoothed = weight / way.inverse_smoothing[:, None]
    coded = np.delete(activation.sample * way.inverse_smoothing, way.exact, axis=1)
    restored = (np.clip(np.rint(coded / scale) + zero_point, 0, 255) - zero_point) * scale
    weight_codes, scales = rounded(np.delete(smoothed, way.exact, axis=0), axis=0)
    exact = coded @ np.delete(smoothed, way.exact, axis=0)
    return float(np.square(exact - restored @ (weight_codes * scales)).mean())


def _smoothing(activation: Activation, weight: Floats, exponent: float) -> Floats:
    """SmoothQuant's s [C], with a geometric mean of 1 so that weights keep their magnitude."""
    largest_input = np.maximum(np.maximum(np.abs(activation.low), np.abs(activation.high)), 1e-9)
    largest_weight = np.maximum(np.abs(weight).max(axis=1), 1e-9)
    logarithm = exponent * np.log(largest_input) - (1 - exponent) * np.log(largest_weight)
    smoothing: Floats = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return smoothing
