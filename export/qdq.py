"""Writes Q/DQ into a graph: quantised inputs and weights of matrix products, and quantised embedding tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["WEIGHT_CODES", "QuantizedInput", "QuantizedProduct", "rewrite", "rounded", "unsigned_scale"]

Floats = npt.NDArray[np.float32]

WEIGHT_CODES = "/weight/codes"
"""How the name of a product's S8 codes ends; what stands before it is the product's."""


@dataclass(frozen=True)
class QuantizedProduct:
    """One matrix product with a constant weight.

    Attributes:
        node: The node's name. What stands before its last `/` is the module, the same in every graph of one encoder.
        codes: S8 codes of the smoothed weight, [C, outputs]; zero in the channels that are exact.
        scales: A scale for each output, [outputs].
        exact_weight: The weight in FP32 of the channels that are exact, [n, outputs].
        relative_error: Squared error on the calibration sample over the squared output.
    """

    node: str
    codes: npt.NDArray[np.int8]
    scales: Floats
    exact_weight: Floats
    relative_error: float

    @property
    def module(self) -> str:
        """The module that the product belongs to."""
        return self.node.rpartition("/")[0]


@dataclass(frozen=True)
class QuantizedInput:
    """One tensor that matrix products take, and the products, whose weights are quantised to suit it.

    What calibration found is kept, and not codes of one kind: `unsigned` suits CPUs, `symmetric` suits TensorRT.

    Attributes:
        source: The tensor's name; its shape is [batch, length, C].
        products: The matrix products, in graph order.
        inverse_smoothing: What the tensor is multiplied by before it is quantised, [C].
        exact: Channels that are multiplied in FP32 beside the quantised product, ascending, [n]; not smoothed.
        low: Least value of the smoothed tensor in the other channels, at most 0.
        high: Its greatest value there, at least 0.
        exact_source: A tensor of the exact channels alone, where there is one: they are not in `source` then, nor in
            the codes.
    """

    source: str
    products: tuple[QuantizedProduct, ...]
    inverse_smoothing: Floats
    exact: npt.NDArray[np.int64]
    low: float
    high: float
    exact_source: str | None = None

    @property
    def unsigned(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of U8 codes."""
        return unsigned_scale(self.low, self.high)

    @property
    def is_smoothed(self) -> bool:
        """Whether the tensor is multiplied by anything before it is quantised."""
        return bool((self.inverse_smoothing != 1).any())

    @property
    def symmetric(self) -> np.float32:
        """Scale of S8 codes whose zero point is 0."""
        return np.float32(max(self.high, -self.low) / 127 or 1.0)


def unsigned_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of U8 codes from `low`, at most 0, to `high`, at least 0."""
    scale = np.float32((high - low) / 255 or 1.0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def rounded(values: Floats, axis: int, top: int = 127) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric S8 codes of a matrix, and their scales.

    Args:
        values: [rows, columns].
        axis: 0 for a scale a column, 1 for a scale a row.
        top: The greatest code.
    """
    scale = (np.abs(values).max(axis=axis, keepdims=True) / top).astype(np.float32)
    scale[scale == 0] = 1
    return np.clip(np.rint(values / scale), -top, top).astype(np.int8), scale.squeeze(axis)


def rewrite(graph: onnx.ModelProto, groups: list[QuantizedInput], tables: dict[str, Floats]) -> None:
    """Puts quantised inputs, weights and embedding tables in place of the FP32 ones, in the graph itself.

    Args:
        graph: The graph that the groups' nodes belong to, its products as Gemm nodes of rows (see `rows`).
        groups: What to quantise of the matrix products.
        tables: Embedding tables [V, H] to quantise, by name.
    """
    constants: list[onnx.TensorProto] = []
    before: dict[str, list[onnx.NodeProto]] = {}  # node name: the nodes that must come before it
    after: dict[str, list[onnx.NodeProto]] = {}
    by_name = {node.name: node for node in graph.graph.node}
    biases = {tensor.name: tensor for tensor in graph.graph.initializer}
    for group in groups:
        source = by_name[group.products[0].node].input[0]  # as rows, under its own name or another
        before[group.products[0].node] = _quantized_input(source, group, constants)
        for product in group.products:
            node = by_name[product.node]
            name = f"{node.name}/weight"  # not the tensor's: layers that share a weight have codes of their own
            if len(node.input) > 2:
                before[node.name] = [
                    *before.get(node.name, []),
                    _quantized_bias(node, group, product, biases, constants),
                ]
            constants.append(numpy_helper.from_array(product.codes, f"{node.name}{WEIGHT_CODES}"))
            constants.append(numpy_helper.from_array(product.scales, f"{name}/scale"))
            # Zero is the default, but ONNX Runtime's fusion to QGemm wants it written down.
            constants.append(numpy_helper.from_array(np.zeros(len(product.scales), np.int8), f"{name}/zero_point"))
            before.setdefault(node.name, []).append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{name}/codes", f"{name}/scale", f"{name}/zero_point"],
                    [f"{name}/restored"],
                    name=name,
                    axis=1,
                )
            )
            node.input[0], node.input[1] = f"{source}/restored", f"{name}/restored"
            if len(group.exact):
                after[node.name] = _exact_part(node, source, group, product, constants)
    for name, table in tables.items():
        codes, scale = rounded(table, axis=1)
        constants.append(numpy_helper.from_array(codes, f"{name}/codes"))
        constants.append(numpy_helper.from_array(scale[:, None], f"{name}/scale"))
    nodes: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            nodes.extend(_quantized_lookup(node))
        else:
            nodes.extend([*before.get(node.name, []), node, *after.get(node.name, [])])
    used = {name for node in nodes for name in node.input}
    constants.extend(tensor for tensor in graph.graph.initializer if tensor.name in used)
    renewed = helper.make_graph(nodes, graph.graph.name, graph.graph.input, graph.graph.output, constants)
    graph.graph.CopyFrom(renewed)


def _quantized_bias(
    node: onnx.NodeProto,
    group: QuantizedInput,
    product: QuantizedProduct,
    biases: dict[str, onnx.TensorProto],
    constants: list[onnx.TensorProto],
) -> onnx.NodeProto:
    """INT32 codes of a Gemm's bias at the scale of the sums that it is added to, which makes it part of the kernel."""
    name = f"{node.name}/bias"  # not the tensor's: equal biases of several products are one tensor
    scale = group.unsigned[0] * product.scales
    limit = 2**31 - 129  # the greatest FP32 below 2**31
    codes = np.clip(np.rint(numpy_helper.to_array(biases[node.input[2]]) / scale), -limit, limit).astype(np.int32)
    constants.append(numpy_helper.from_array(codes, f"{name}/codes"))
    constants.append(numpy_helper.from_array(scale, f"{name}/scale"))
    node.input[2] = f"{name}/restored"
    return helper.make_node("DequantizeLinear", [f"{name}/codes", f"{name}/scale"], [node.input[2]], name=name, axis=0)


def _quantized_input(source: str, group: QuantizedInput, constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    nodes = []
    smooth = source
    if group.is_smoothed:
        smooth = f"{source}/smooth"
        constants.append(numpy_helper.from_array(group.inverse_smoothing, f"{source}/inverse_smoothing"))
        nodes.append(helper.make_node("Mul", [source, f"{source}/inverse_smoothing"], [smooth], name=smooth))
    scale, zero_point = group.unsigned
    constants.append(numpy_helper.from_array(np.array(scale), f"{source}/scale"))
    constants.append(numpy_helper.from_array(np.array(zero_point), f"{source}/zero_point"))
    parameters = [f"{source}/scale", f"{source}/zero_point"]
    codes, restored = f"{source}/codes", f"{source}/restored"
    nodes.append(helper.make_node("QuantizeLinear", [smooth, *parameters], [codes], name=f"{source}/quantize"))
    nodes.append(helper.make_node("DequantizeLinear", [codes, *parameters], [restored], name=f"{source}/dequantize"))
    return nodes


def _exact_part(
    node: onnx.NodeProto,
    source: str,
    group: QuantizedInput,
    product: QuantizedProduct,
    constants: list[onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """What the exact channels add to a product: one FP32 Gemm that takes the INT8 product's output as its third input.

    Where the channels are not a tensor of their own, the INT8 product still runs over all of them, these with weights
    of zero: leaving them out would take a copy of the whole tensor, picking these takes one of a few columns.
    """
    name, output = f"{node.name}/exact", node.output[0]
    channels, weight, picked = f"{name}/channels", f"{name}/weight", group.exact_source or f"{name}/input"
    constants.append(numpy_helper.from_array(product.exact_weight, weight))
    node.output[0] = f"{name}/coded"
    sum_of_both = helper.make_node("Gemm", [picked, weight, node.output[0]], [output], name=name)
    if group.exact_source:
        return [sum_of_both]
    constants.append(numpy_helper.from_array(group.exact, channels))
    return [helper.make_node("Gather", [source, channels], [picked], name=picked, axis=1), sum_of_both]


def _quantized_lookup(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A row's codes times the row's scale. DequantizeLinear cannot do this: the scale follows the token."""
    table, name = node.input[0], node.output[0]  # a table may be looked up more than once
    row_codes, row_scale, row = (f"{name}/{part}" for part in ("row_codes", "row_scale", "row"))
    return [
        helper.make_node("Gather", [f"{table}/codes", node.input[1]], [row_codes], name=row_codes),
        helper.make_node("Gather", [f"{table}/scale", node.input[1]], [row_scale], name=row_scale),
        helper.make_node("Cast", [row_codes], [row], name=row, to=TensorProto.FLOAT),
        helper.make_node("Mul", [row, row_scale], [name], name=f"{name}/row_restored"),
    ]
