"""The instruction head as an ONNX graph, and what it has in common with the encoder's. Without torch.

Opset 20 and IR 10 load in every stock Triton image since 24.10.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph_file import open_session, save_graph

__all__ = ["IR_VERSION", "OPSET", "VECTOR", "export_head", "run_head", "through_head_graph"]

Floats = npt.NDArray[np.float32]

OPSET = 20
IR_VERSION = 10
VECTOR = "instruction_vector"  # "embedding" would collide with a node inside the graph


def export_head(weight: Floats, bias: Floats, path: Path) -> None:
    """Writes the instruction head, u = W h + b, as a graph.

    Input: `instruction_vector` FP32 [batch, H]. Output: `logits` FP32 [batch, K].

    Args:
        weight: W, shape [K, H].
        bias: b, shape [K].
        path: The file to make.

    Raises:
        ExportError: The shapes do not agree, or a value is not finite.
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ExportError(f"The head's weight {weight.shape} and bias {bias.shape} must have shapes [K, H] and [K].")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ExportError("The head has a weight that is not finite. Train it again.")
    labels, hidden = weight.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", [VECTOR, "weight", "bias"], ["logits"], name="head", transB=1)],
        "head",
        [helper.make_tensor_value_info(VECTOR, TensorProto.FLOAT, ["batch", hidden])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.ascontiguousarray(bias, dtype=np.float32), "bias"),
        ],
    )
    save_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)


def run_head(path: Path, vectors: Floats) -> Floats:
    """The logits [n, K] that the graph at `path` gives of vectors [n, H].

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    logits: Floats = open_session(path).run(["logits"], {VECTOR: vectors})[0]
    return logits


def through_head_graph(weight: Floats, bias: Floats, vectors: Floats) -> Floats:
    """The logits [n, K] of vectors [n, H] by a head's graph, which is made for this and not kept.

    Raises:
        ExportError: As `export_head`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "head.onnx"
        export_head(weight, bias, path)
        return run_head(path, vectors)
