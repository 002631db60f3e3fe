"""A few dimensions of a matrix that say nearly all about its inner products, and how far they can be off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

WIDTHS = (64, 128)
"""Dimensions of the first and of the second part: 0.95 and another 0.04 of what is in 384 of tuned MiniLM's items."""
SAMPLE = 4_096
"""Vectors that the directions are taken from."""
SLICE = 8_192
"""Vectors that are worked on at a time: a temporary of the matrix's own size is never made."""


@dataclass(frozen=True)
class Divided:
    """Vectors in two parts, and the lengths of what is left after each.

    Attributes:
        head: float32 [rows, WIDTHS[0]].
        head_rest: float32 [rows].
        more: float32 [rows, WIDTHS[1]].
        more_rest: float32 [rows].
    """

    head: Vectors
    head_rest: Vectors
    more: Vectors
    more_rest: Vectors


class NarrowVectors:
    """Each vector along the directions in which all of them are longest.

    In an orthonormal basis `⟨q, v⟩ = ⟨q_head, v_head⟩ + ⟨q_more, v_more⟩ + …`, and what is left after a part is at most
    `|q_rest| · |v_rest|` (Cauchy and Schwarz).
    """

    def __init__(self, vectors: Vectors) -> None:
        """Find the directions and take every vector apart.

        Args:
            vectors: float32 [N, D], D above the sum of `WIDTHS`.
        """
        sample = vectors[:: -(-len(vectors) // SAMPLE)]
        _, directions = np.linalg.eigh(sample.T @ sample)
        longest = directions[:, ::-1].astype(np.float32)
        first, both = WIDTHS[0], sum(WIDTHS)
        self._bases = np.ascontiguousarray(longest[:, :first]), np.ascontiguousarray(longest[:, first:both])
        count = len(vectors)
        self.vectors = Divided(
            np.empty((count, WIDTHS[0]), np.float32),
            np.empty(count, np.float32),
            np.empty((count, WIDTHS[1]), np.float32),
            np.empty(count, np.float32),
        )
        for start in range(0, count, SLICE):
            part = slice(start, start + SLICE)
            for name, values in vars(self.divide(vectors[part])).items():
                getattr(self.vectors, name)[part] = values

    def divide(self, vectors: Vectors) -> Divided:
        """Take vectors, float32 [rows, D], apart."""
        first, second = self._bases
        head: Vectors = vectors @ first
        rest: Vectors = vectors - head @ first.T
        more: Vectors = rest @ second
        left: Vectors = rest - more @ second.T
        return Divided(head, lengths(rest), more, lengths(left))


def lengths(vectors: Vectors) -> Vectors:
    """The length of each vector, float32 [rows]."""
    return np.asarray(np.sqrt((vectors * vectors).sum(axis=1)), dtype=np.float32)
