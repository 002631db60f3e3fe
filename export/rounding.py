"""Rounds a weight so that what one row loses the rows after it make up for (GPTQ, Frantar et al., arXiv 2210.17323).

Rounding to the nearest code treats every input alike. Inputs are correlated, so an error of one row's codes can be
cancelled, as far as the product goes, by other codes for the rows not yet rounded. It costs nothing when served.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["CompensatedRounding", "NearestRounding"]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Channels = npt.NDArray[np.int64]

_DAMPING = 0.01  # of the mean square of an input; keeps rare directions from taking all the compensation
_BLOCK = 128


class NearestRounding:
    """Rounds every weight to its nearest code."""

    def __init__(self, gram: Floats, noise: npt.ArrayLike, exact: Channels) -> None:
        """Takes what `CompensatedRounding` takes; only `exact` matters here."""
        self._exact = exact

    def round(self, weight: Floats, scales: Floats, top: int) -> tuple[Codes, Floats]:
        """See `CompensatedRounding.round`."""
        codes = np.clip(np.rint(weight / scales), -top, top).astype(np.int8)
        codes[self._exact] = 0
        return codes, weight[self._exact]


class CompensatedRounding:
    """Rounding for weights that share one input."""

    def __init__(self, gram: Floats, noise: npt.ArrayLike, exact: Channels) -> None:
        """Factors the inverse of the input's second moments.

        Args:
            gram: Mean of x xᵀ over the inputs, [C, C].
            noise: Mean squared error that quantising an input makes: one number, or one a channel, [C].
            exact: Channels whose weights stay in FP32, [n]. They are rounded last, that is not at all, and so make up
                for what all others lose.
        """
        damped = gram.astype(np.float64)
        damped.flat[:: len(gram) + 1] += noise + _DAMPING * damped.trace() / len(gram) + 1e-12
        least_first = -damped.diagonal()  # what matters most has all others to help
        least_first[exact] = np.inf
        self._order = np.argsort(least_first, kind="stable")
        self._exact = exact
        inverse = np.linalg.inv(damped[np.ix_(self._order, self._order)])
        self._factor = np.linalg.cholesky(inverse).T.astype(np.float32)

    def round(self, weight: Floats, scales: Floats, top: int) -> tuple[Codes, Floats]:
        """S8 codes and FP32 weights that lose least of the product over the inputs.

        Args:
            weight: [C, outputs].
            scales: A scale for each output, [outputs].
            top: The greatest code.

        Returns:
            The codes, [C, outputs], zero where a channel is exact, and the weights of the exact channels, [n, outputs].
        """
        left, factor = weight[self._order], self._factor
        coded = len(weight) - len(self._exact)
        codes = np.zeros(weight.shape, dtype=np.int8)
        for start in range(0, coded, _BLOCK):
            stop = min(start + _BLOCK, coded)
            errors = np.empty((stop - start, weight.shape[1]), dtype=np.float32)
            for row in range(start, stop):
                rounded = np.clip(np.rint(left[row] / scales), -top, top)
                codes[self._order[row]] = rounded
                errors[row - start] = (left[row] - rounded * scales) / factor[row, row]
                left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
            left[stop:] -= factor[start:stop, stop:].T @ errors
        return codes, left[coded:]
