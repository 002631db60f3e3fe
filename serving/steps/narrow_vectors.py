"""A few dimensions of a matrix that say nearly all about its inner products, and how far they can be off."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Vectors in two parts, and the length of what is left after each.

    Attributes:
        parts: float32 [rows, WIDTHS[0]] and [rows, WIDTHS[1]].
        rests: float32 [rows] each.
    """

    parts: tuple[Vectors, Vectors]
    rests: tuple[Vectors, Vectors]


class NarrowVectors:
    """Each vector along the directions in which all of them are longest.

    In an orthonormal basis `⟨q, v⟩ = ⟨q₁, v₁⟩ + ⟨q₂, v₂⟩ + ⟨q₃, v₃⟩`, and what is left after a part is at most
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
        ends = np.cumsum(WIDTHS)
        self._bases = [np.ascontiguousarray(own) for own in np.split(longest, ends, axis=1)[:-1]]
        slices = [self.divide(vectors[start : start + SLICE]) for start in range(0, len(vectors), SLICE)]
        self.vectors = Divided(
            *(
                tuple(np.concatenate([getattr(one, name)[part] for one in slices]) for part in range(2))
                for name in ("parts", "rests")
            )
        )

    def divide(self, vectors: Vectors) -> Divided:
        """Take vectors, float32 [rows, D], apart."""
        parts, rests = [], []
        for basis in self._bases:
            own = vectors @ basis
            vectors = vectors - own @ basis.T
            parts.append(own)
            rests.append(np.sqrt(np.einsum("rd,rd->r", vectors, vectors)))
        return Divided(tuple(parts), tuple(rests))
