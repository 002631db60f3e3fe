"""The encoder in half precision: the graph that GPUs run, and the checks that FP32 arithmetic would hide.

The encoder's weights and activations are FP16; LayerNorm, pooling and normalisation are FP32, with explicit casts, so
that no runtime has to guess. Attention (scale, mask, softmax) keeps its own type, which TensorRT's fused kernel needs.

ONNX Runtime computes most of such a graph in FP32 on a CPU, so it shows neither FP16's rounding nor its overflow. Two
checks beside the usual verification do: torch runs the same modules in half precision, which rounds and overflows
after each of them, and every tensor inside the graph is looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from export.encoder_graph import EncoderGraph, ready_to_trace
from export.errors import VerificationError
from export.graph_file import load_graph, open_session
from export.onnx_graph import export_encoder
from export.report import Check, VerificationBudget, VerificationReport
from export.task import Task
from export.tokens import Batch, pad, tokenize
from export.verify import verify_encoder
from training.model import InstructionModel

__all__ = ["LARGEST", "export_fp16_encoder", "half_model", "largest_batches", "overflow", "verify_fp16"]

LARGEST = float(np.finfo(np.float16).max)
"""65504: what is greater becomes infinite in FP16."""
_HEADROOM = 0.5  # of that range may be used: other texts may go beyond those that were tried
_ROUNDING_TEXTS = 32

Floats = npt.NDArray[np.float32]


class _LayerNorm(nn.Module):
    """A LayerNorm that takes and gives half precision and computes in FP32: squares of 256 and more overflow FP16."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = (
            None if one is None else nn.Parameter(one.float()) for one in (norm.weight, norm.bias)
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        normalised = nn.functional.layer_norm(states.float(), self.shape, self.weight, self.bias, self.eps)
        return normalised.to(states.dtype)


def half_model(model: InstructionModel) -> InstructionModel:
    """Returns a copy of a model whose encoder is FP16 but for its LayerNorms; pooling and head stay FP32."""
    encoder: Any = copy.deepcopy(model.encoder)  # a transformers model, whose class is the config's
    norms = [
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.LayerNorm)
    ]
    encoder.half()
    for parent, name, norm in norms:
        setattr(parent, name, _LayerNorm(norm))
    half = InstructionModel(encoder, model.tokenizer, model.pooling, model.max_length, model.head.out_features)
    half.head.load_state_dict(model.head.state_dict())
    return half


def export_fp16_encoder(model: InstructionModel, path: Path) -> None:
    """Writes the encoder as an FP16 graph; inputs and output are those of the FP32 one.

    Args:
        model: The FP32 model, or one that `half_model` made.
        path: The file to make.

    Raises:
        ExportError: As `export_encoder`.
    """
    export_encoder(model if model.encoder.dtype == torch.float16 else half_model(model), path)


def verify_fp16(
    graph: Path,
    model: InstructionModel,
    texts: Sequence[str],
    buckets: Sequence[int],
    budget: VerificationBudget,
    *,
    item_vectors: Floats | None = None,
    task: Task | None = None,
) -> VerificationReport:
    """Compares an FP16 graph with torch, and looks for overflow and for what rounding costs.

    Args:
        graph: The ONNX file.
        model: The torch model, in FP32.
        texts: Real instructions.
        buckets: The lengths, in tokens, that the server pads to.
        budget: How far the graph, and torch in half precision, may be from torch in FP32.
        item_vectors: As in `verify_encoder`.
        task: As in `verify_encoder`.

    Returns:
        The report, all checks passed.

    Raises:
        VerificationError: A check failed. Its report names the first place that overflows, if one does.
        ExportError: As `verify_encoder`.
    """
    try:
        report = verify_encoder(graph, model, texts, buckets, budget, item_vectors=item_vectors, task=task)
    except VerificationError as error:
        report = error.report
    largest, place = overflow(load_graph(graph), largest_batches(model, texts, max(buckets)))
    checks = [
        Check.at_most("greatest magnitude inside", largest, LARGEST * _HEADROOM),
        *_rounding(model, texts[:_ROUNDING_TEXTS], budget),
    ]
    report = report.model_copy(
        update={"checks": (*report.checks, *checks), "first_divergence": place or report.first_divergence}
    )
    if not report.passed:
        raise VerificationError(report)
    return report


def overflow(graph: onnx.ModelProto, batches: Sequence[Batch]) -> tuple[float, str | None]:
    """Looks at every tensor inside a graph.

    Args:
        graph: An encoder graph.
        batches: Token ids and masks; what padding holds counts too, because it could spread.

    Returns:
        The greatest magnitude of any tensor, and the first node whose result is not finite, in words. A magnitude
        beyond FP16's range is given as infinite whatever type the tensor has here.
    """
    visible = onnx.ModelProto()
    visible.CopyFrom(graph)
    nodes = [node for node in visible.graph.node if node.op_type not in {"Shape", "Constant"}]
    names = [name for node in nodes for name in node.output]
    del visible.graph.output[:]
    visible.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(visible)
    greatest, beyond = 0.0, len(nodes)
    for ids, mask in batches:
        found = session.run(names, {"input_ids": ids, "attention_mask": mask})
        for position, values in enumerate(found):
            if values.dtype.kind != "f" or values.size == 0:
                continue
            magnitude = float(np.abs(values.astype(np.float32)).max())
            if not magnitude <= LARGEST:  # NaN too
                magnitude, beyond = float("inf"), min(beyond, position)
            greatest = max(greatest, magnitude)
    if beyond == len(nodes):
        return greatest, None
    return greatest, f"{nodes[beyond].name} (tensor {names[beyond]}) goes beyond FP16's {LARGEST:.0f}"


def largest_batches(model: InstructionModel, texts: Sequence[str], longest: int) -> list[Batch]:
    """Real texts, one joined to the longest bucket, and that length of the words with the largest embeddings."""
    rows = sorted(tokenize(model, texts), key=len)[-8:]
    joined = [token for row in rows for token in row]
    while len(joined) < longest:
        joined = joined * 2
    encoder: Any = model.encoder
    table = encoder.get_input_embeddings().weight.detach().abs().amax(dim=1)
    known = min(model.tokenizer.get_vocab_size(), len(table))
    extreme = torch.argsort(table[:known], descending=True)[:longest].tolist()
    return [pad(rows[-2:], min(longest, len(rows[-1]))), pad([joined[:longest]], longest), pad([extreme], longest)]


def _rounding(model: InstructionModel, texts: Sequence[str], budget: VerificationBudget) -> list[Check]:
    """What half precision does where it is computed in half precision: torch on the very modules that are traced."""
    half = half_model(model)
    rows = sorted(tokenize(model, texts), key=len)
    pairs = []
    with torch.inference_mode():
        for start in range(0, len(rows), 16):
            ids, mask = (torch.from_numpy(one) for one in pad(rows[start : start + 16]))
            exact = model(ids, mask)[0]
            with ready_to_trace(half.encoder):
                pairs.append((exact, EncoderGraph(half).eval()(ids, mask)[0]))
    exact, rounded = (torch.cat(vectors).double() for vectors in zip(*pairs, strict=True))
    invalid = int((~torch.isfinite(rounded)).sum())
    cosine = torch.cosine_similarity(exact, rounded, dim=1)
    return [
        Check.at_most("values that are not finite, torch in half precision", invalid, 0),
        Check.at_least(
            "minimum cosine, torch in half precision", float(cosine.min()) if not invalid else 0.0, budget.min_cosine
        ),
    ]
