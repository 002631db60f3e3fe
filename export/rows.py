"""Rewrites an encoder graph so that its products see rows of tokens, [batch * length, C], instead of texts.

A product of rows with its bias is one ONNX Gemm, which ONNX Runtime has an INT8 kernel for that takes the bias too; a
product of [batch, length, C] leaves the bias to a pass of its own over memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["products_of_rows"]

# Operators that work on each number, or each token, by itself.
_ROW_WISE = {"Add", "Sub", "Mul", "Div", "Gelu", "Erf", "Tanh", "Sigmoid", "Relu", "Sqrt", "LayerNormalization"}


def products_of_rows(graph: onnx.ModelProto, products: Collection[str]) -> None:
    """Makes the named products Gemm nodes of rows, with the bias that follows, and lets rows flow on where they can.

    Tensors keep their names; one that flows as rows has the shape [batch * length, C].

    Args:
        graph: An encoder graph, changed in place.
        products: Names of MatMul nodes [batch, length, C] x [C, outputs] whose second input is a constant.
    """
    _Rewriter(graph, products).rewrite()


class _Rewriter:
    def __init__(self, graph: onnx.ModelProto, products: Collection[str]) -> None:
        self.graph = graph.graph
        self.products = products
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(value.name for value in self.graph.output)
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.nodes: list[onnx.NodeProto] = []
        self.rows: dict[str, str] = {}  # a tensor, and the tensor that holds it as rows: itself, or a reshaped copy
        self.texts: dict[str, str] = {}  # the other way round
        self.width: dict[str, int] = {}

    def rewrite(self) -> None:
        biases = self._biases()
        for node in self.graph.node:
            if node.name in self.products:
                self._gemm(node, biases.get(node.output[0]))
            elif node.name in {bias.name for bias in biases.values()}:
                continue  # it is part of the Gemm now
            elif self._is_row_wise(node):
                node.input[:] = [self.rows.get(name, name) for name in node.input]
                self._flows(node.output[0], self.width[next(one for one in node.input if one in self.width)])
                self.nodes.append(node)
            else:
                takes_rows = node.op_type == "Reshape" and _writes_its_whole_shape(node)
                node.input[:] = [name if takes_rows else self._as_texts(name) for name in node.input]
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _biases(self) -> dict[str, onnx.NodeProto]:
        """The Add that follows a product and adds a constant vector to it, by the product's output."""
        outputs = {node.output[0] for node in self.graph.node if node.name in self.products}
        found = {}
        for node in self.graph.node:
            if node.op_type == "Add" and node.input[0] in outputs and self.uses[node.input[0]] == 1:
                bias = self.constants.get(node.input[1])
                if bias is not None and len(bias.dims) == 1:
                    found[node.input[0]] = node
        return found

    def _gemm(self, node: onnx.NodeProto, bias: onnx.NodeProto | None) -> None:
        inputs, outputs = self.constants[node.input[1]].dims
        node.input[0] = self._as_rows(node.input[0], inputs)
        node.op_type = "Gemm"
        if bias is not None:
            node.input.append(bias.input[1])
            node.output[0] = bias.output[0]
        self._flows(node.output[0], outputs)
        self.nodes.append(node)

    def _is_row_wise(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _ROW_WISE or not any(name in self.rows for name in node.input):
            return False
        widths = {self.width[self.rows[name]] for name in node.input if name in self.rows}
        others = [self.constants.get(name) for name in node.input if name not in self.rows]
        return len(widths) == 1 and all(one is not None and len(one.dims) <= 1 for one in others)

    def _flows(self, name: str, width: int) -> None:
        self.rows[name] = name
        self.width[name] = width

    def _as_rows(self, name: str, width: int) -> str:
        if name not in self.rows:
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == "Reshape" and self.uses[name] == 1:
                maker.input[1] = self._shape(f"{name}/shape", [-1, width])  # one Reshape does for both
                self._flows(name, width)
            else:
                self.rows[name] = f"{name}/rows"
                self.width[f"{name}/rows"] = width
                self.texts[f"{name}/rows"] = name
                shape = self._shape(f"{name}/shape", [-1, width])
                self.nodes.append(helper.make_node("Reshape", [name, shape], [f"{name}/rows"], name=f"{name}/rows"))
        return self.rows[name]

    def _as_texts(self, name: str) -> str:
        if self.rows.get(name) != name:
            return name
        if name not in self.texts:
            self.texts[name] = f"{name}/texts"
            width = self._shape(f"{name}/width", [self.width[name]])
            parts = [f"{name}/batch_and_length", width]
            self.nodes += [
                helper.make_node("Shape", ["input_ids"], parts[:1], name=parts[0]),
                helper.make_node("Concat", parts, [f"{name}/text_shape"], name=f"{name}/text_shape", axis=0),
                helper.make_node("Reshape", [name, f"{name}/text_shape"], [f"{name}/texts"], name=f"{name}/texts"),
            ]
        return self.texts[name]

    def _shape(self, name: str, values: list[int]) -> str:
        if name not in self.constants:
            tensor = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            self.graph.initializer.append(tensor)
            self.constants[name] = tensor
        return name


def _writes_its_whole_shape(node: onnx.NodeProto) -> bool:
    """Whether a Reshape takes no dimension from its input's shape."""
    return any(attribute.name == "allowzero" and attribute.i == 1 for attribute in node.attribute)
