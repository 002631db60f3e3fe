"""A release's own encoder as something to embed with: the head is tuned on the very vectors that it will be served."""

from __future__ import annotations

from pathlib import Path

from export.graph_encoder import GraphEncoder
from export.kept_settings import served_as
from serving.releases import Release
from training.run import Run

from .errors import ContinualError

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"


def release_encoder(release: Release, run: Run) -> GraphEncoder:
    """Tokenizer and graph of a release with the encoder in a step of its own, or fused, in the engine that serves it.

    Args:
        release: has both files.
        run: what it was exported of.

    Raises:
        ContinualError: the release lacks one of them.
        ExportError: it does not say how it is served.
    """
    record, served = run.manifest.encoder, served_as(release)
    return GraphEncoder(
        _file(release, GRAPH, "encoder"),
        _file(release, TOKENIZER, "tokenizer"),
        hidden_size=record.hidden_size,
        pooling=record.pooling,
        max_length=served.max_length,
        engine=served.engine,
    )


def _file(release: Release, name: str, step_name: str) -> Path:
    steps = release.manifest.steps
    step = steps.get(step_name) or steps.get("fused")
    path = release.models / step.model / str(step.version) / name if step else None
    if path is None or not path.is_file():
        raise ContinualError(f"{release.path}: has no {name} of the {step_name}; export the release again")
    return path
