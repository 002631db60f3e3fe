"""Optimisation profiles: which shapes an engine takes, and for which each of its variants is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from export.errors import ExportError

__all__ = ["INPUTS", "Profile", "captured_batches", "make_profiles"]

INPUTS = ("input_ids", "attention_mask")
_TUNED_BATCHES = (1, 8)

Shape = tuple[int, int]


@dataclass(frozen=True)
class Profile:
    """A range of shapes (batch, length), tuned for its largest one.

    Attributes:
        smallest: Least batch and length.
        largest: Greatest batch and length, and what the kernels are chosen for: the server pads to it.
    """

    smallest: Shape
    largest: Shape

    def takes(self, batch: int, length: int) -> bool:
        """Whether a batch of this shape can run in it."""
        return all(
            low <= size <= high for low, size, high in zip(self.smallest, (batch, length), self.largest, strict=True)
        )


def make_profiles(buckets: Sequence[int], max_batch_size: int) -> tuple[Profile, ...]:
    """Returns one profile for each length bucket and batch range: 1, 2 to 8, and up to the largest.

    They meet and do not overlap, so any batch of 1 to `max_batch_size` rows of 1 to `max(buckets)` tokens has exactly
    one. A kernel tuned for a batch of 32 is a poor one for a batch of 1.

    Raises:
        ExportError: There is no bucket or no batch.
    """
    if not buckets or max_batch_size < 1 or min(buckets) < 1:
        raise ExportError("An engine needs at least one length bucket and a batch size of at least 1.")
    batches = [0, *(size for size in _TUNED_BATCHES if size < max_batch_size), max_batch_size]
    lengths = [0, *sorted(set(buckets))]
    return tuple(
        Profile((fewer + 1, shorter + 1), (more, longer))
        for shorter, longer in pairwise(lengths)
        for fewer, more in pairwise(batches)
    )


def captured_batches(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes whose CUDA graph is kept for every bucket; a smaller batch is filled up to the next of them."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return tuple(sorted({*sizes, max_batch_size}))
