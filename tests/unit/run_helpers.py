"""A run that needs no training: made-up vectors and a made-up encoder folder, for tests that never embed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from training.config_loading import load_config
from training.dataset import Dataset, Instruction, Item
from training.encoder_source import weights_sha256
from training.run import DatasetRecord, EncoderRecord, Run, RunContent, RunManifest, write_run
from training.score import ScoreWeights

HIDDEN_SIZE = 8


def items_of(*names: str, label: str = "Shirts") -> list[Item]:
    """Items whose id, title and text are made of these names."""
    return [Item(f"id-{name}", name, f"{name} of {label}", label, 1.0, {"colour": "blue"}) for name in names]


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """What stands for an encoder: a direction of its own for each text, float32 [n, HIDDEN_SIZE]."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=HIDDEN_SIZE) for text in texts]
    vectors = np.array(rows, dtype=np.float32).reshape(len(texts), HIDDEN_SIZE)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_run(
    config: Path,
    var: Path,
    items: Sequence[Item],
    instructions: Sequence[Instruction] = (),
    *,
    encoder: Path | None = None,
    embed: Callable[[Sequence[str]], np.ndarray] = vectors_of,
    **history: Any,
) -> Run:
    """A run of `config` under `var`, with `items` and the labels that they have.

    Its `encoder` is a made-up one, or a real one in a folder, whose vectors `embed` makes.
    """
    sha256 = "e" * 64 if encoder is None else weights_sha256(encoder)
    if encoder is None:
        encoder = var / "source-encoder"
        encoder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (encoder / name).write_text(name, encoding="utf-8")
    vectors = embed([item.text for item in items])
    hidden_size = vectors.shape[1]
    labels = sorted({item.label for item in items})
    settings = load_config(config)
    if history:
        settings = settings.model_copy(update={"history": settings.history.model_copy(update=history)})
    weights = np.random.default_rng(0).normal(size=(len(labels), hidden_size)).astype(np.float32)
    manifest = RunManifest(
        run_id="20260101T000000000Z-aaaaaaaa",
        domain=settings.domain,
        created="2026-01-01T00:00:00+00:00",
        fingerprint="a" * 64,
        dataset=DatasetRecord(source=settings.sources[0].name, fingerprint="d" * 64, files={}),
        encoder=EncoderRecord(name="made up", sha256=sha256, pooling="mean", max_length=32, hidden_size=hidden_size),
        score_weights=ScoreWeights(alpha=2, beta=1, gamma=1, delta=0.5, history_decay=0.8),
        metrics={"weak_labels": False},
    )
    dataset = Dataset("main", tuple(items), tuple(instructions), (), False, True, "d" * 64, {})
    head = cast("Any", SimpleNamespace(weight=weights, bias=np.zeros(len(labels), np.float32)))
    behaviour = vectors[:, :4] if settings.history.vectors == "behaviour" else None
    content = RunContent(manifest, settings, dataset, encoder, head, vectors, "a report\n", behaviour)
    return write_run(var / "runs" / settings.domain, content)
