"""An FP32 encoder graph to static INT8, for ONNX Runtime and OpenVINO on a CPU.

Only the inputs of matrix products with a constant weight are quantised: weights to S8 with a scale for each output
channel, activations to U8 with one scale and zero point a tensor, fixed by calibration. So an answer depends neither on
its neighbours in the batch nor on padding. Attention products, LayerNorm, softmax and pooling stay in FP32: quantising
those is what ruins accuracy.

Before that, the outliers of an activation are dealt with, by what measures best (see `outliers`). Products with the
same input (query, key, value) share one treatment and one scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from export.calibration import Activation, observe
from export.errors import ExportError
from export.exact_channels import set_apart
from export.graph_file import load_graph, save_graph
from export.outliers import choose_treatment
from export.qdq import QuantizedInput, QuantizedProduct, rewrite, rounded
from export.rounding import CompensatedRounding, NearestRounding
from export.rows import products_of_rows
from export.tokens import Batch

__all__ = [
    "Int8Report",
    "Int8Settings",
    "ProductReport",
    "Quantization",
    "decide",
    "emit",
    "quantize_encoder",
]

Floats = npt.NDArray[np.float32]

REDUCED = 63
"""The greatest 7-bit code: two products with U8 codes add up to less than 16 bits hold."""


class Int8Settings(BaseModel):
    """How an encoder graph is quantised.

    Attributes:
        smoothing: SmoothQuant's exponent a, where smoothing helps; 0 switches it off.
        exact_channels: How many channels of a narrowing product's input (the second half of a feed-forward block, the
            most sensitive kind) may be multiplied in FP32 beside the INT8 product, where that helps; 0: none.
        compensation: Rounds weights so that errors cancel (see `rounding`), and not each to its nearest code.
        max_relative_error: A product whose squared error on the calibration sample, over the squared output, is above
            this stays in FP32. 0 leaves every product in FP32.
        float_down_projection: Leaves every product that narrows in FP32: closer to torch, larger and slower.
        embedding_tables: Holds embedding tables of at least `table_rows` rows as S8 with a scale for each row.
        table_rows: See above.
        reduce_range: 7-bit weights, for x86 CPUs without VNNI, whose 16-bit sums would saturate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smoothing: float = Field(default=0.85, ge=0, le=1)
    exact_channels: int = Field(default=32, ge=0)
    compensation: bool = True
    max_relative_error: float = Field(default=0.01, ge=0)
    float_down_projection: bool = False
    embedding_tables: bool = True
    table_rows: int = Field(default=4096, ge=1)
    reduce_range: bool = False


class ProductReport(BaseModel):
    """One matrix product.

    Attributes:
        name: Its node.
        relative_error: Squared error on the calibration sample over the squared output.
        quantized: Whether it is INT8.
        smoothed: Whether its input is smoothed.
        exact_channels: How many channels of its input are multiplied in FP32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    relative_error: float
    quantized: bool
    smoothed: bool = False
    exact_channels: int = 0


class Int8Report(BaseModel):
    """What quantisation did.

    Attributes:
        settings: The settings it ran with.
        products: Every matrix product with a constant weight, in graph order.
        tables: Names of the embedding tables held as S8.
        bytes_fp32: Size of the FP32 graph's file.
        bytes_int8: Size of the INT8 graph's file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Int8Settings
    products: tuple[ProductReport, ...]
    tables: tuple[str, ...]
    bytes_fp32: int
    bytes_int8: int

    @property
    def quantized_share(self) -> float:
        """The share of the products that are INT8."""
        return sum(product.quantized for product in self.products) / len(self.products)


@dataclass(frozen=True)
class Quantization:
    """What is quantised and how: what calibration decided, apart from the graph it is written into.

    Attributes:
        settings: The settings it was decided with.
        inputs: The tensors that quantised products take, in graph order.
        kept: Products that stay in FP32, and their relative errors.
        tables: Names of the embedding tables to hold as S8.
    """

    settings: Int8Settings
    inputs: tuple[QuantizedInput, ...]
    kept: dict[str, float]
    tables: tuple[str, ...]


def quantize_encoder(
    fp32: Path, int8: Path, calibration: Iterable[Batch], settings: Int8Settings | None = None
) -> Int8Report:
    """Makes the INT8 graph of an FP32 encoder graph. Equal input gives equal bytes.

    Args:
        fp32: The graph that `export_encoder` wrote.
        int8: The file to make.
        calibration: See `decide`.
        settings: The defaults when None.

    Raises:
        ExportError: See `decide`.
    """
    graph = load_graph(fp32)
    return emit(graph, decide(graph, calibration, settings), int8)


def decide(graph: onnx.ModelProto, calibration: Iterable[Batch], settings: Int8Settings | None = None) -> Quantization:
    """Calibrates an FP32 encoder graph and rounds its weights; the graph stays as it is.

    Args:
        graph: The graph that `export_encoder` wrote.
        calibration: Real texts as token ids and masks, each [batch, length]; see `tokens.calibration_batches`. Varied
            ones: half instructions, half catalogue texts lose less than instructions alone; 256 are enough.
        settings: The defaults when None.

    Raises:
        ExportError: The graph has no matrix product with a constant weight, or calibration has no text or meets a value
            that is not finite.
    """
    settings = settings or Int8Settings()
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    sharing: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and len(constants[node.input[1]].dims) == 2:
            sharing.setdefault(node.input[0], []).append(node)
    if not sharing:
        raise ExportError("There is no matrix product with a constant weight to quantise. Is the graph an encoder?")
    activations = observe(graph, list(sharing), calibration)
    groups = [
        _quantize(
            nodes, [numpy_helper.to_array(constants[node.input[1]]) for node in nodes], activations[source], settings
        )
        for source, nodes in sharing.items()
    ]
    chosen = tuple(group for group in groups if _is_worth_it(group, settings))
    return Quantization(
        settings=settings,
        inputs=chosen,
        kept={
            product.node: product.relative_error
            for group in groups
            if not any(group is one for one in chosen)
            for product in group.products
        },
        tables=_tables(graph, constants, settings),
    )


def emit(graph: onnx.ModelProto, quantization: Quantization, path: Path) -> Int8Report:
    """Writes the form for CPUs, U8 activations and S8 weights, of the FP32 graph that `decide` was given.

    Args:
        graph: The graph; it stays as it is.
        quantization: What `decide` returned for it.
        path: The file to make.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    tables = {name: numpy_helper.to_array(constants[name]) for name in quantization.tables}
    groups = list(quantization.inputs)
    products_of_rows(made, {product.node for group in groups for product in group.products})
    rewrite(made, set_apart(made, groups), tables)
    save_graph(made, path)
    reports = {
        name: ProductReport(name=name, relative_error=error, quantized=False)
        for name, error in quantization.kept.items()
    } | {
        product.node: ProductReport(
            name=product.node,
            relative_error=product.relative_error,
            quantized=True,
            smoothed=group.is_smoothed,
            exact_channels=len(group.exact),
        )
        for group in quantization.inputs
        for product in group.products
    }
    return Int8Report(
        settings=quantization.settings,
        products=tuple(reports[node.name] for node in graph.graph.node if node.name in reports),
        tables=quantization.tables,
        bytes_fp32=graph.ByteSize(),
        bytes_int8=path.stat().st_size,
    )


def _is_worth_it(group: QuantizedInput, settings: Int8Settings) -> bool:
    inputs, outputs = group.products[0].codes.shape
    if settings.float_down_projection and inputs > outputs:
        return False
    return max(product.relative_error for product in group.products) < settings.max_relative_error


def _quantize(
    nodes: list[onnx.NodeProto], weights: list[Floats], activation: Activation, settings: Int8Settings
) -> QuantizedInput:
    channels, outputs = weights[0].shape
    way = choose_treatment(
        activation,
        np.concatenate(weights, axis=1),
        settings.smoothing,
        min(settings.exact_channels, channels // 8) if channels > outputs else 0,
    )
    group = QuantizedInput(
        source=nodes[0].input[0],
        products=(),
        inverse_smoothing=way.inverse_smoothing,
        exact=way.exact,
        low=way.low,
        high=way.high,
    )
    scale, zero_point = group.unsigned
    smoothed_sample = activation.sample * way.inverse_smoothing
    restored = (np.clip(np.rint(smoothed_sample / scale) + zero_point, 0, 255) - zero_point) * scale
    restored[:, way.exact] = smoothed_sample[:, way.exact]
    noise = np.full(channels, scale**2 / 12)
    noise[way.exact] = 0
    gram = activation.gram * np.outer(way.inverse_smoothing, way.inverse_smoothing)
    rounding = (CompensatedRounding if settings.compensation else NearestRounding)(gram, noise, way.exact)
    top = REDUCED if settings.reduce_range else 127
    products = []
    for node, weight in zip(nodes, weights, strict=True):
        smoothed = weight / way.inverse_smoothing[:, None]
        scales = rounded(np.delete(smoothed, way.exact, axis=0), axis=0, top=top)[1]
        codes, kept = rounding.round(smoothed, scales, top)
        made = codes * scales
        made[way.exact] = kept
        exact = activation.sample @ weight
        error = np.square(exact - restored @ made).mean() / max(np.square(exact).mean(), 1e-30)
        products.append(QuantizedProduct(node.name, codes, scales, kept, float(error)))
    return replace(group, products=tuple(products))


def _tables(graph: onnx.ModelProto, constants: dict[str, onnx.TensorProto], settings: Int8Settings) -> tuple[str, ...]:
    if not settings.embedding_tables:
        return ()
    found = (
        node.input[0]
        for node in graph.graph.node
        if node.op_type == "Gather"
        and node.input[0] in constants
        and constants[node.input[0]].data_type == TensorProto.FLOAT
        and len(constants[node.input[0]].dims) == 2
        and constants[node.input[0]].dims[0] >= settings.table_rows
    )
    return tuple(dict.fromkeys(found))  # once, however often it is looked up
