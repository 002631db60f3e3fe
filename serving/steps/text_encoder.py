"""From texts to instruction vectors and logits in one process, without padding to buckets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .encoder_engine import Engine
from .length_runs import split_into_runs
from .tokenization import InstructionTokenizer

Vectors = npt.NDArray[np.float32]

OUTPUT = "instruction_vector"


class TextEncoder:
    """Tokenizer and encoder; texts of all lengths go in together."""

    def __init__(self, tokenizer: InstructionTokenizer, engine: Engine, length_multiple: int) -> None:
        """Join the two.

        Args:
            tokenizer: of the encoder.
            engine: the encoder's graph, opened.
            length_multiple: padded lengths are multiples of this.
        """
        self._tokenizer = tokenizer
        self._engine = engine
        self._multiple = length_multiple
        [self._width] = [one.shape[-1] for one in engine.outputs if one.name == OUTPUT]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """The instruction vectors of some texts, float32 [texts, H]; none depends on another text."""
        token_ids = self._tokenizer.encode(texts)
        lengths = [max(1, len(ids)) for ids in token_ids]  # a text may have not one token
        if len(texts) == 1:
            return self._run(token_ids, lengths[0] + -lengths[0] % self._multiple)
        vectors = np.empty((len(texts), self._width or 0), dtype=np.float32)
        for run in split_into_runs(lengths, multiple=self._multiple):
            vectors[run.positions] = self._run([token_ids[row] for row in run.positions], run.length)
        return vectors

    def _run(self, rows: Sequence[Sequence[int]], length: int) -> Vectors:
        input_ids = np.zeros((len(rows), length), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        [vectors] = self._engine.run([OUTPUT], {"input_ids": input_ids, "attention_mask": attention_mask})
        return vectors

    def warm_up(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Run batches of these shapes once: an engine prepares itself for a shape when it first sees it."""
        for length in lengths:
            for count in rows:
                self._run([[1] * length] * count, length)


class Head:
    """The linear instruction head, as a plain product."""

    def __init__(self, weight: Vectors, bias: Vectors) -> None:
        """Take `weight` [K, H] and `bias` [K], both float32."""
        self.weight, self.bias = weight, bias
        self._transposed = np.ascontiguousarray(weight.T)

    @classmethod
    def open(cls, folder: Path) -> Head:
        """Read `head_weight.npy` and `head_bias.npy`.

        Raises:
            ValueError: they do not fit each other.
        """
        weight, bias = (np.load(folder / f"head_{part}.npy", allow_pickle=False) for part in ("weight", "bias"))
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"head_weight.npy is {weight.shape}, head_bias.npy {bias.shape}; export the release again")
        return cls(weight, bias)

    def write(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        np.save(folder / "head_weight.npy", np.ascontiguousarray(self.weight, dtype=np.float32))
        np.save(folder / "head_bias.npy", np.asarray(self.bias, dtype=np.float32))

    def logits(self, vectors: Vectors) -> Vectors:
        """The logits of some instruction vectors, float32 [rows, K]."""
        return np.asarray(vectors @ self._transposed + self.bias, dtype=np.float32)
