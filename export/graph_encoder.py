"""An exported encoder graph as something to embed with, whose vectors are kept: each text goes through it once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import ExportError
from export.graph_file import library_version
from export.settings import LENGTH_MULTIPLES, Engine
from serving.files import sha256_of
from serving.steps import encoder_engine, length_runs, text_encoder, tokenization
from serving.steps.text_encoder import OUTPUT, TextEncoder
from training.embedding_cache import EmbeddingCache

__all__ = ["BATCH_SIZE", "GraphEncoder"]

Vectors = npt.NDArray[np.float32]

BATCH_SIZE = 64
"""Texts that whoever embeds with a graph gives it at a time."""

SERVED_BY = (encoder_engine, length_runs, text_encoder, tokenization)
"""The code that makes a text a vector here as it does when served."""


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
    ) -> None:
        """Name the two files.

        Args:
            graph: The encoder's ONNX file.
            tokenizer: The `tokenizer.json` that belongs to it.
            hidden_size: The width of the graph's output.
            pooling: The encoder's, for the cache's key.
            max_length: Tokens that a text is cut to, the last length bucket.
            engine: What runs the graph when it is served.
        """
        self.hidden_size = hidden_size
        self._graph, self._tokenizer, self._engine = graph, tokenizer, engine
        self._pooling, self._max_length = pooling, max_length
        self._encoder: TextEncoder | None = None

    def cache(self, var: Path) -> EmbeddingCache:
        """The cache of the vectors that these very files give in this engine.

        Raises:
            ExportError: One of them cannot be read.
        """
        code = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in SERVED_BY if module.__file__))
        try:
            files = f"{sha256_of(self._graph)} {sha256_of(self._tokenizer)}"
        except OSError as error:
            raise ExportError(f"{error.filename}: cannot be read: {error.strerror}; export the release again") from None
        made_by = f"{self._engine} {library_version(self._engine)} {files} {code.hexdigest()}"
        folder = var / "cache" / "embeddings"
        return EmbeddingCache(folder, made_by, self._pooling, self._max_length, usual_batch_size=BATCH_SIZE)

    def embed(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, progress: Callable[[int], object] | None = None
    ) -> Vectors:
        """The vectors of `texts`, float32 [n, H], of length 1.

        Raises:
            ExportError: The graph cannot be read or run, or is none of an encoder.
        """
        encoder = self._opened()
        parts = [np.empty((0, self.hidden_size), np.float32)]
        for start in range(0, len(texts), batch_size):
            try:
                parts.append(encoder.encode(texts[start : start + batch_size]))
            except Exception as error:  # the engines' exceptions share no base class
                raise ExportError(f"{self._graph}: {self._engine} fails to run it: {error}") from error
            if progress is not None:
                progress(len(parts[-1]))
        return np.concatenate(parts)

    def _opened(self) -> TextEncoder:
        if self._encoder is None:
            try:
                engine = encoder_engine.open_engine(self._engine, self._graph, threads=1)
            except Exception as error:  # as above
                raise ExportError(f"{self._graph}: {self._engine} refuses the graph: {error}") from error
            if OUTPUT not in [one.name for one in engine.outputs]:
                raise ExportError(f"{self._graph}: has no output {OUTPUT}; export the release again")
            try:
                tokenizer = tokenization.InstructionTokenizer(self._tokenizer, [self._max_length])
            except Exception as error:  # tokenizers raises nothing more specific
                raise ExportError(f"{self._tokenizer}: no tokenizer: {error}; export the release again") from error
            self._encoder = TextEncoder(tokenizer, engine, length_multiple=LENGTH_MULTIPLES[self._engine])
        return self._encoder
