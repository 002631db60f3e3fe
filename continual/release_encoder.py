"""A release's own encoder as something to embed with: the head is tuned on the very vectors that it will be served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.settings import ServingSettings
from serving.releases import Release
from serving.steps.encoder_engine import OnnxRuntimeEngine
from serving.steps.text_encoder import OUTPUT, TextEncoder
from serving.steps.tokenization import InstructionTokenizer
from training.embedding_cache import EmbeddingCache
from training.run import Run

from .errors import ContinualError

Vectors = npt.NDArray[np.float32]
GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"


class ReleaseEncoder:
    """Tokenizer and ONNX graph of a release, without torch: opened in a fraction of a second."""

    def __init__(self, release: Release, run: Run) -> None:
        """Find the two files; they are opened when there is something to embed.

        Args:
            release: with the encoder, in steps of its own or fused.
            run: what it was exported of.

        Raises:
            ContinualError: the release lacks one of them.
        """
        self._graph, self._tokenizer = _file(release, GRAPH, "encoder"), _file(release, TOKENIZER, "tokenizer")
        record = run.manifest.encoder
        buckets = ServingSettings.model_validate(run.config.serving).buckets_up_to(record.max_length)
        self.hidden_size = record.hidden_size
        self.max_length = buckets[-1]
        self.pooling = record.pooling
        self.fingerprint = release.manifest.files[self._graph.relative_to(release.path).as_posix()]
        self._encoder: TextEncoder | None = None

    def cache(self, var: Path) -> EmbeddingCache:
        """The cache of this graph's vectors."""
        return EmbeddingCache(var / "cache" / "embeddings", f"onnx {self.fingerprint}", self.pooling, self.max_length)

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> Vectors:
        """The vectors of `texts`, float32 [n, H], of length 1."""
        if self._encoder is None:
            engine = OnnxRuntimeEngine(self._graph)
            if OUTPUT not in [one.name for one in engine.outputs]:
                raise ContinualError(f"{self._graph}: has no output {OUTPUT}; export the release again")
            tokenizer = InstructionTokenizer(self._tokenizer, [self.max_length])
            self._encoder = TextEncoder(tokenizer, engine, length_multiple=1)
        parts = [np.empty((0, self.hidden_size), np.float32)]
        for start in range(0, len(texts), batch_size):
            parts.append(self._encoder.encode(texts[start : start + batch_size]))
            if progress is not None:
                progress(len(parts[-1]))
        return np.concatenate(parts)


def _file(release: Release, name: str, step_name: str) -> Path:
    steps = release.manifest.steps
    step = steps.get(step_name) or steps.get("fused")
    path = release.models / step.model / str(step.version) / name if step else None
    if path is None or not path.is_file():
        raise ContinualError(f"{release.path}: has no {name} of the {step_name}; export the release again")
    return path
