"""Gives the channels that are multiplied in FP32 a product of their own, so that nothing has to pick them.

The channels of a feed-forward block's inner tensor are the outputs of the product before it. Taken out of that product
into a small one beside it, they never are part of the large tensor, which then has one reader, its quantiser: OpenVINO
makes product, activation and quantiser one kernel, and ONNX Runtime saves the copy. The numbers are the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.qdq import QuantizedInput, QuantizedProduct

__all__ = ["set_apart"]

Channels = npt.NDArray[np.int64]


def set_apart(graph: onnx.ModelProto, groups: list[QuantizedInput]) -> list[QuantizedInput]:
    """Splits the products that make exact channels, in the graph itself, and returns the groups that fit it.

    A group stays as it is where more than a Gelu lies between its channels and the product that makes them, or where
    something else reads them.

    Args:
        graph: A graph of rows (see `rows`) with FP32 products. The weights of a product that is split are not: the
            groups have them.
        groups: What is to be quantised of it.
    """
    found = {group.source: group for group in groups}
    makers = {name: node for node in graph.graph.node for name in node.output}
    uses = Counter(name for node in graph.graph.node for name in node.input)
    group_of = {product.node: group.source for group in groups for product in group.products}
    for source in list(found):
        group, activation = found[source], makers.get(source)
        if not len(group.exact) or activation is None or activation.op_type != "Gelu":
            continue
        product = makers.get(activation.input[0])
        if product is None or product.name not in group_of or len(product.input) < 3:
            continue
        if uses[source] == len(group.products) and uses[activation.input[0]] == 1:
            made_by = group_of[product.name]
            found[made_by] = _without_exact(found[made_by], product.name, group.exact)
            found[source] = replace(
                group,
                inverse_smoothing=np.delete(group.inverse_smoothing, group.exact),
                products=tuple(replace(one, codes=np.delete(one.codes, group.exact, axis=0)) for one in group.products),
                exact_source=_add_product(graph, product, activation, group.exact),
            )
    return list(found.values())


def _without_exact(group: QuantizedInput, node: str, exact: Channels) -> QuantizedInput:
    """The group with one product made two: what is left of it, and, last, the exact channels."""
    [whole] = [one for one in group.products if one.node == node]
    rest = np.setdiff1d(np.arange(len(whole.scales)), exact)
    kept = [_some_outputs(one, node, rest) if one is whole else one for one in group.products]
    return replace(group, products=(*kept, _some_outputs(whole, _name(node), exact)))


def _some_outputs(product: QuantizedProduct, node: str, outputs: Channels) -> QuantizedProduct:
    return replace(
        product,
        node=node,
        codes=product.codes[:, outputs],
        scales=product.scales[outputs],
        exact_weight=product.exact_weight[:, outputs],
    )


def _add_product(graph: onnx.ModelProto, product: onnx.NodeProto, activation: onnx.NodeProto, exact: Channels) -> str:
    """Adds the small product and its activation after the large one, and returns the name of what they make."""
    bias = next(numpy_helper.to_array(one) for one in graph.graph.initializer if one.name == product.input[2])
    name = _name(product.name)
    biases = {f"{name}/bias_left": np.delete(bias, exact), f"{name}/bias_exact": bias[exact]}
    graph.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in biases.items())
    product.input[2] = f"{name}/bias_left"
    beside = [
        helper.make_node("Gemm", [product.input[0], f"{name}/weight", f"{name}/bias_exact"], [name], name=name),
        onnx.NodeProto(),
    ]
    beside[1].CopyFrom(activation)
    beside[1].name, beside[1].input[0], beside[1].output[0] = f"{name}/activation", name, f"{name}/activated"
    place = next(index for index, node in enumerate(graph.graph.node) if node.name == product.name) + 1
    for offset, node in enumerate(beside):
        graph.graph.node.insert(place + offset, node)
    return f"{name}/activated"


def _name(product: str) -> str:
    return f"{product}/exact_outputs"
