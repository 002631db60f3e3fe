"""Holds the head and the tokenizer, as the files that a release has of them, against the run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.head_graph import run_head
from export.model_config import FUSED
from export.report import Check
from serving.steps.text_encoder import Head
from serving.steps.tokenization import InstructionTokenizer
from training.run import Run
from training.tokenizer import load_tokenizer

__all__ = ["check_head", "check_tokens"]

HEAD_DIFFERENCE = 1e-4
VECTORS = 64


def check_head(run: Run, step: str, folder: Path) -> Check:
    """That the logits of a step's files are those of the run's head, as a share of the greatest."""
    vectors = run.item_vectors()[:VECTORS]
    weight, bias = run.head()
    wanted = vectors @ weight.T + bias
    found = Head.open(folder).logits(vectors) if step == FUSED else run_head(folder / "model.onnx", vectors)
    difference = float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    return Check.at_most("difference of the head as it is served", difference, HEAD_DIFFERENCE)


def check_tokens(run: Run, file: Path, buckets: Sequence[int], texts: Sequence[str]) -> Check:
    """That a text is cut into the tokens, and to the length, that it was at training."""
    trained = load_tokenizer(run.path / "encoder", run.manifest.encoder.max_length)
    wanted = [encoding.ids for encoding in trained.encode_batch(list(texts))]
    found = InstructionTokenizer(file, buckets).encode(texts)
    others = sum(one != other for one, other in zip(wanted, found, strict=True))
    return Check.at_most("texts with other tokens than at training", others, 0)
