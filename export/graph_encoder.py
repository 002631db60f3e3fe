"""An exported encoder graph as something to embed with, whose vectors are kept: each text goes through it once."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import ExportError
from export.settings import LENGTH_MULTIPLES, Engine
from serving.files import sha256_of
from serving.steps.encoder_engine import open_engine
from serving.steps.text_encoder import OUTPUT, TextEncoder
from serving.steps.tokenization import InstructionTokenizer
from training.embedding_cache import EmbeddingCache

__all__ = ["GraphEncoder"]

Vectors = npt.NDArray[np.float32]


class GraphEncoder:
    """Tokenizer and graph as they are served, without torch: opened in a fraction of a second, when first needed.

    An `Embedder` for an `EmbeddingCache`. What an export has measured, a re-tuning of the head need not embed again.

    Attributes:
        hidden_size: H, the width of a vector.
    """

    def __init__(
        self,
        graph: Path,
        tokenizer: Path,
        *,
        hidden_size: int,
        pooling: str,
        max_length: int,
        engine: Engine = "onnxruntime",
        sha256: str | None = None,
    ) -> None:
        """Name the two files.

        Args:
            graph: The encoder's ONNX file.
            tokenizer: The `tokenizer.json` that belongs to it.
            hidden_size: The width of the graph's output.
            pooling: The encoder's, for the cache's key.
            max_length: Tokens that a text is cut to, the last length bucket.
            engine: What runs the graph when it is served.
            sha256: The graph's, if it is known.
        """
        self.hidden_size = hidden_size
        self._graph, self._tokenizer, self._engine = graph, tokenizer, engine
        self._pooling, self._max_length, self._sha256 = pooling, max_length, sha256
        self._encoder: TextEncoder | None = None

    def cache(self, var: Path) -> EmbeddingCache:
        """The cache of this graph's vectors in this engine."""
        made_by = f"{self._engine} {importlib.metadata.version(self._engine)} {self._sha256 or sha256_of(self._graph)}"
        return EmbeddingCache(var / "cache" / "embeddings", made_by, self._pooling, self._max_length)

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> Vectors:
        """The vectors of `texts`, float32 [n, H], of length 1.

        Raises:
            ExportError: The graph cannot be read or run, or is none of an encoder.
        """
        encoder = self._opened()
        parts = [np.empty((0, self.hidden_size), np.float32)]
        for start in range(0, len(texts), batch_size):
            parts.append(encoder.encode(texts[start : start + batch_size]))
            if progress is not None:
                progress(len(parts[-1]))
        return np.concatenate(parts)

    def _opened(self) -> TextEncoder:
        if self._encoder is None:
            try:
                engine = open_engine(self._engine, self._graph, threads=1)
            except Exception as error:  # the engines' exceptions share no base class
                raise ExportError(f"{self._graph}: {self._engine} refuses the graph: {error}") from error
            if OUTPUT not in [one.name for one in engine.outputs]:
                raise ExportError(f"{self._graph}: has no output {OUTPUT}; export the release again")
            tokenizer = InstructionTokenizer(self._tokenizer, [self._max_length])
            self._encoder = TextEncoder(tokenizer, engine, length_multiple=LENGTH_MULTIPLES[self._engine])
        return self._encoder
