"""From a request's BYTES rows to token ids, padded to a length bucket."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .invalid_request import InvalidRequestError

MAX_INSTRUCTION_BYTES = 16_384
"""Longer texts are refused before they are tokenized: 20 MB would hold the step for half a minute and 1.5 GB."""

UNSEEN = frozenset({"Cc", "Cf", "Co", "Mn", "Mc", "Me", "Zs", "Zl", "Zp"})
"""Unicode's categories of what alone says nothing: control, zero-width, private characters, marks, spaces."""


def is_blank(text: str) -> bool:
    """Whether there is nothing in a text that a tokenizer would keep; the client has the same rule.

    BERT's tokenizers drop all of these, and U+FFFD, which stands for bytes that somebody could not decode.
    """
    return all(character == "\ufffd" or unicodedata.category(character) in UNSEEN for character in text)


def decode_instructions(rows: npt.NDArray[np.object_]) -> list[str]:
    """Check and decode a request's instructions.

    Args:
        rows: BYTES tensor of shape [batch, 1].

    Returns:
        One text a row, never blank.

    Raises:
        InvalidRequestError: a row is empty or blank, too long, or not UTF-8.
    """
    return [_decode(value, row) for row, value in enumerate(rows.reshape(-1))]


def _decode(value: bytes, row: int) -> str:
    if len(value) > MAX_INSTRUCTION_BYTES:
        raise InvalidRequestError(
            f"instruction (row {row}) has {len(value):,} bytes; "
            f"at most {MAX_INSTRUCTION_BYTES:,} are accepted: shorten it"
        )
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"instruction (row {row}) is not UTF-8 text (byte {error.start}): encode it as UTF-8"
        ) from None
    if is_blank(text):
        raise InvalidRequestError(f"instruction (row {row}) is empty: say what the person wants")
    return text


class InstructionTokenizer:
    """A Hugging Face tokenizer that truncates to the last bucket and pads each request to the first that holds it.

    Few distinct lengths let Triton's dynamic batcher, which joins only requests of equal shape, form batches again
    downstream.
    """

    def __init__(self, path: Path, buckets: Sequence[int]) -> None:
        """Load `tokenizer.json`.

        Args:
            path: the tokenizer file; padding and truncation stored in it are replaced.
            buckets: ascending lengths in tokens; the last one is the encoder's limit.
        """
        self.buckets = np.asarray(buckets, dtype=np.int64)
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=int(self.buckets[-1]))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most the last bucket long."""
        encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts))
        return [encoding.ids for encoding in encodings]

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pad the rows of one request to a common bucket.

        Returns:
            `input_ids` and `attention_mask`, int64, both [rows, bucket].
        """
        longest = max(len(ids) for ids in token_ids)
        bucket = int(self.buckets[np.searchsorted(self.buckets, longest)])
        input_ids = np.zeros((len(token_ids), bucket), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask
