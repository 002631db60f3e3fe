"""One calibration, the second form: symmetric S8 Q/DQ on the FP16 graph, which TensorRT builds.

TensorRT takes neither U8 activations nor a zero point. Scales are FP16, as strong typing demands: what is quantised and
restored keeps the type of its scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph_file import save_graph
from export.int8 import Quantization

__all__ = ["constant_products", "emit_symmetric"]

_LEAST_SCALE = float(np.finfo(np.float16).smallest_normal)  # below it FP16 loses precision, and a scale with it

Halves = npt.NDArray[np.float16]


def constant_products(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The matrix products with a constant weight [C, outputs], quantised or not, in graph order."""
    weights = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    weights |= {
        node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    return [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def emit_symmetric(fp32: onnx.ModelProto, fp16: onnx.ModelProto, quantization: Quantization, path: Path) -> None:
    """Writes the FP16 graph with the products that calibration chose in S8, activations and weights.

    Args:
        fp32: The graph that was calibrated.
        fp16: The FP16 graph of the same model; it stays as it is.
        quantization: What `decide` returned for `fp32`. Its embedding tables are left in FP16.
        path: The file to make.

    Raises:
        ExportError: The graphs are not of the same model, or no product was chosen.
    """
    made = onnx.ModelProto()
    made.CopyFrom(fp16)
    counterpart = _counterparts(fp32, made)
    if not quantization.inputs:
        raise ExportError("Calibration left every matrix product in float, so there is no INT8 graph to make.")
    constants: list[onnx.TensorProto] = []
    before: dict[str, list[onnx.NodeProto]] = {}
    after: dict[str, list[onnx.NodeProto]] = {}
    for group in quantization.inputs:
        nodes = [counterpart[product.node] for product in group.products]
        source = nodes[0].input[0]
        scale = np.float16(max(float(group.symmetric), _LEAST_SCALE))
        before[nodes[0].name] = _input(source, group.inverse_smoothing.astype(np.float16), scale, constants)
        for node, product in zip(nodes, group.products, strict=True):
            before.setdefault(node.name, []).append(_weight(node, product.codes, product.scales, constants))
            node.input[0] = f"{source}/restored"
            if len(group.exact):
                after[node.name] = _exact_part(node, source, group.exact, product.exact_weight, constants)
    nodes_now = [
        one for node in made.graph.node for one in (*before.get(node.name, []), node, *after.get(node.name, []))
    ]
    used = {name for node in nodes_now for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    renewed = helper.make_graph(nodes_now, made.graph.name, made.graph.input, made.graph.output, [*constants, *kept])
    made.graph.CopyFrom(renewed)
    save_graph(made, path)


def _counterparts(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The FP16 graph's product for every name in the FP32 graph: node numbers differ, order and weights do not."""
    exact, rounded = constant_products(fp32), constant_products(fp16)
    weights = [{tensor.name: tensor for tensor in graph.graph.initializer} for graph in (fp32, fp16)]
    if len(exact) != len(rounded):
        raise ExportError(f"The FP32 graph has {len(exact)} matrix products, the FP16 graph {len(rounded)}.")
    for one, other in zip(exact, rounded, strict=True):
        first = numpy_helper.to_array(weights[0][one.input[1]])
        second = numpy_helper.to_array(weights[1][other.input[1]])
        if first.shape != second.shape or not np.array_equal(first.astype(np.float16), second):
            raise ExportError(f"{one.name} and {other.name} have other weights: export both graphs from one model.")
    return {one.name: other for one, other in zip(exact, rounded, strict=True)}


def _input(
    source: str, inverse_smoothing: Halves, scale: np.float16, constants: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    nodes, smooth = [], source
    if (inverse_smoothing != 1).any():
        smooth = f"{source}/smooth"
        constants.append(numpy_helper.from_array(inverse_smoothing, f"{source}/inverse_smoothing"))
        nodes.append(helper.make_node("Mul", [source, f"{source}/inverse_smoothing"], [smooth], name=smooth))
    constants.append(numpy_helper.from_array(np.array(scale), f"{source}/scale"))
    constants.append(numpy_helper.from_array(np.array(0, dtype=np.int8), f"{source}/zero"))
    parameters = [f"{source}/scale", f"{source}/zero"]
    codes, restored = f"{source}/codes", f"{source}/restored"
    nodes.append(helper.make_node("QuantizeLinear", [smooth, *parameters], [codes], name=f"{source}/quantize"))
    nodes.append(helper.make_node("DequantizeLinear", [codes, *parameters], [restored], name=f"{source}/dequantize"))
    return nodes


def _weight(
    node: onnx.NodeProto,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    constants: list[onnx.TensorProto],
) -> onnx.NodeProto:
    """Codes of the weight on a scale that FP16 holds exactly, and the node that restores it."""
    name = node.input[1]
    held = np.maximum(scales, _LEAST_SCALE).astype(np.float16)
    again = np.clip(np.rint(codes * (scales / held.astype(np.float32))), -127, 127).astype(np.int8)
    constants.append(numpy_helper.from_array(again, f"{name}/codes"))
    constants.append(numpy_helper.from_array(held, f"{name}/scale"))
    constants.append(helper.make_tensor(f"{name}/zero", TensorProto.INT8, held.shape, np.zeros(held.shape, np.int8)))
    node.input[1] = f"{name}/restored"
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}/codes", f"{name}/scale", f"{name}/zero"],
        [f"{name}/restored"],
        name=f"{node.name}/weight",
        axis=1,
    )


def _exact_part(
    node: onnx.NodeProto,
    source: str,
    channels: npt.NDArray[np.int64],
    weight: npt.NDArray[np.float32],
    constants: list[onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """What the channels that are not quantised add to a product, in FP16."""
    name, output = f"{node.name}/exact", node.output[0]
    constants.append(numpy_helper.from_array(channels, f"{name}/channels"))
    constants.append(numpy_helper.from_array(weight.astype(np.float16), f"{name}/weight"))
    node.output[0] = f"{name}/coded"
    return [
        helper.make_node("Gather", [source, f"{name}/channels"], [f"{name}/input"], name=f"{name}/input", axis=-1),
        helper.make_node("MatMul", [f"{name}/input", f"{name}/weight"], [f"{name}/product"], name=f"{name}/product"),
        helper.make_node("Add", [node.output[0], f"{name}/product"], [output], name=name),
    ]
