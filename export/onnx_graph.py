"""The torch encoder as an ONNX graph in FP32, by tracing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from export.encoder_graph import EncoderGraph, ready_to_trace
from export.errors import ExportError
from export.graph_file import save_graph
from export.head_graph import IR_VERSION, OPSET, VECTOR

if TYPE_CHECKING:
    from training.model import InstructionModel

__all__ = ["HIDDEN_STATE", "export_encoder"]

HIDDEN_STATE = "hidden_state_{}"
"""Name, within the encoder graph, of the hidden state after layer i (0: after the embedding tables)."""


def export_encoder(model: InstructionModel, path: Path) -> None:
    """Writes the encoder, its pooling and the L2 normalisation as one FP32 graph.

    Inputs: `input_ids` and `attention_mask`, INT64 [batch, length]; the mask is 1 for text, then 0 for padding.
    Output: `instruction_vector` FP32 [batch, H]. The same weights and library versions give the same bytes.

    Args:
        model: The model, in any mode; it is left as it was.
        path: The file to make.

    Raises:
        ExportError: The pooling is unknown, or this kind of encoder cannot be traced.
    """
    if model.pooling not in ("mean", "cls", "last"):
        raise ExportError(f"Pooling {model.pooling!r} cannot be exported. Choose mean, cls or last.")
    with ready_to_trace(model.encoder):
        wrapper = EncoderGraph(model).eval()
        try:
            graph = _trace(wrapper, model.max_length)
        except Exception as error:  # the tracer raises whatever the encoder's own code raises
            kind = model.encoder.config.model_type
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise ExportError(f"An encoder of type {kind!r} could not be traced to ONNX: {reason}") from error
    _keep_only_the_vector(graph)
    _anonymise(graph)
    save_graph(graph, path)


def _trace(wrapper: EncoderGraph, max_length: int) -> onnx.ModelProto:
    ids = torch.ones(2, min(8, max_length), dtype=torch.int64)  # neither dimension may be 1, or it becomes a constant
    layers = len(wrapper(ids, ids)) - 1
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=max_length)}
    program = torch.onnx.export(
        wrapper,
        (ids, ids.clone()),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=(shape, shape),
        input_names=["input_ids", "attention_mask"],
        output_names=[VECTOR, *(HIDDEN_STATE.format(layer) for layer in range(layers))],
        verbose=False,
    )
    if program is None:
        raise ExportError("The tracer returned no graph.")
    graph: onnx.ModelProto = program.model_proto
    graph.ir_version = IR_VERSION
    return graph


def _keep_only_the_vector(graph: onnx.ModelProto) -> None:
    """Hidden states were outputs to get a name that verification can find again; the server has no use for them."""
    del graph.graph.output[1:]
    needed = {VECTOR}
    kept = []
    for node in reversed(graph.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(reversed(kept))


def _anonymise(graph: onnx.ModelProto) -> None:
    """Names nodes after their module, and removes the trace's notes: they hold paths of this machine."""
    for node in graph.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        if len(scopes) > 1:
            node.name = f"{scopes[-2]}/{node.name}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.graph.metadata_props[:], graph.metadata_props[:], graph.graph.value_info[:]
    graph.doc_string = graph.graph.doc_string = ""
    graph.graph.name = "encoder"
