"""Finds the layer where a graph leaves torch first."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch

from export.graph_file import open_served
from export.onnx_graph import HIDDEN_STATE
from export.report import VerificationBudget
from export.settings import Engine
from export.tokens import Batch
from training.model import InstructionModel

__all__ = ["first_divergence"]


def first_divergence(
    graph: onnx.ModelProto,
    model: InstructionModel,
    batch: Batch,
    budget: VerificationBudget,
    engine: Engine = "onnxruntime",
) -> str | None:
    """Compares the hidden states of graph and torch, layer by layer, where there is text.

    Args:
        graph: An encoder graph that `export_encoder` wrote, quantised or not.
        model: The torch model.
        batch: Token ids and mask; some padding lets a mask fault show.
        budget: A layer diverges where the mean cosine of its tokens is under `mean_cosine`.
        engine: What runs the graph.

    Returns:
        The first layer that diverges, in words, or None if the graph does not name its hidden states.
    """
    ids, mask = batch
    with torch.inference_mode():
        states = model.encoder(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True
        ).hidden_states
    made = {name for node in graph.graph.node for name in node.output}
    names = [HIDDEN_STATE.format(layer) for layer in range(len(states))]
    if not made.issuperset(names):
        return None
    visible = onnx.ModelProto()
    visible.CopyFrom(graph)
    visible.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "visible.onnx"
        path.write_bytes(visible.SerializeToString())
        found = open_served(path, engine).run(names, {"input_ids": ids, "attention_mask": mask})
    for layer, (expected, values) in enumerate(zip(states, found, strict=True)):
        value = values.reshape(expected.shape)  # an INT8 graph holds it as rows of tokens
        text = mask == 1
        cosine = float(torch.cosine_similarity(expected[text], torch.from_numpy(value[text]).float(), dim=-1).mean())
        if not (np.isfinite(value[text]).all() and cosine >= budget.mean_cosine):
            place = "the embedding tables" if layer == 0 else f"encoder layer {layer} of {len(states) - 1}"
            return f"{place} (tensor {names[layer]}, mean cosine {cosine:.6g})"
    return "after the last encoder layer (pooling, normalisation), or small errors of all layers that add up"
