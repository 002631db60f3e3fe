"""What flows through a graph: the range of every channel, and a sample of tokens, over real texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from export.errors import ExportError
from export.graph_file import open_session
from export.tokens import Batch

__all__ = ["Activation", "observe"]

Floats = npt.NDArray[np.float32]

_TOKENS_AT_ONCE = 512  # x xᵀ of a few tokens at a time would spend its time on adding it up


@dataclass
class Activation:
    """What one tensor [batch, length, C] held where there was text.

    Attributes:
        low: Least value of each channel, [C].
        high: Greatest value of each channel, [C].
        sample: The first tokens seen, [T, C], to measure an error on.
        products: Sum over all tokens of x xᵀ, [C, C].
        tokens: How many tokens there were.
    """

    low: Floats
    high: Floats
    sample: Floats
    products: Floats
    tokens: int

    @property
    def gram(self) -> Floats:
        """Mean of x xᵀ, [C, C]."""
        return self.products / np.float32(self.tokens)


def observe(
    graph: onnx.ModelProto, names: Sequence[str], batches: Iterable[Batch], sample_tokens: int = 1024
) -> dict[str, Activation]:
    """Runs a graph over batches and records the named tensors, padding left out.

    Args:
        graph: An encoder graph in FP32.
        names: Tensors inside it, each [batch, length, C].
        batches: Token ids and masks.
        sample_tokens: How many tokens to keep of each tensor.

    Raises:
        ExportError: There was not one batch, or a tensor took a value that is not finite.
    """
    visible = onnx.ModelProto()
    visible.CopyFrom(graph)
    del visible.graph.output[:]
    visible.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(visible)
    seen: dict[str, Activation] = {}
    waiting: dict[str, list[Floats]] = {name: [] for name in names}
    for ids, mask in batches:
        for name, value in zip(names, session.run(None, {"input_ids": ids, "attention_mask": mask}), strict=True):
            tokens = value[mask == 1]
            if not np.isfinite(tokens).all():
                raise ExportError(f"Tensor {name} takes a value that is not finite, so it has no range to calibrate.")
            waiting[name].append(tokens)
            if sum(map(len, waiting[name])) >= _TOKENS_AT_ONCE:
                _add(seen, name, waiting, sample_tokens)
    for name in names:
        if waiting[name]:
            _add(seen, name, waiting, sample_tokens)
    if not seen:
        raise ExportError("There are no calibration texts. Give at least one; 256 real ones are good.")
    return seen


def _add(seen: dict[str, Activation], name: str, waiting: dict[str, list[Floats]], sample_tokens: int) -> None:
    tokens = np.concatenate(waiting[name])
    waiting[name].clear()
    low, high = tokens.min(axis=0), tokens.max(axis=0)
    if name not in seen:
        seen[name] = Activation(low, high, tokens[:sample_tokens], tokens.T @ tokens, len(tokens))
        return
    known = seen[name]
    known.low, known.high = np.minimum(known.low, low), np.maximum(known.high, high)
    known.products += tokens.T @ tokens
    known.tokens += len(tokens)
    if len(known.sample) < sample_tokens:
        known.sample = np.concatenate([known.sample, tokens])[:sample_tokens]
