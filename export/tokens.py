"""Texts as the arrays an encoder graph takes: token ids and masks, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from training.model import InstructionModel

__all__ = ["Batch", "calibration_batches", "pad", "tokenize"]

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Token ids and mask, both INT64 [batch, length]."""


def tokenize(model: InstructionModel, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of every text, without padding and no longer than the model's limit."""
    return [encoding.ids[: model.max_length] for encoding in model.tokenizer.encode_batch(list(texts))]


def pad(rows: Sequence[Sequence[int]], length: int | None = None, multiple: int = 1) -> Batch:
    """Makes one batch of rows of token ids.

    Args:
        rows: Token ids; a row longer than `length` is cut.
        length: Tokens a row; as many as the longest row has when None.
        multiple: The length is rounded up to a multiple of this.
    """
    length = length or max(1, *map(len, rows))  # a text may have not one token
    length += -length % multiple
    ids = np.zeros((len(rows), length), dtype=np.int64)  # masked, so any id that exists will do
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        kept = row[:length]
        ids[index, : len(kept)] = kept
        mask[index, : len(kept)] = 1
    return ids, mask


def calibration_batches(model: InstructionModel, texts: Sequence[str]) -> list[Batch]:
    """Returns a batch of one for every text with a token, so that no padding enters the statistics."""
    return [pad([row]) for row in tokenize(model, texts) if row]
