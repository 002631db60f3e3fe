"""From an ONNX graph to a serialised engine: parse, check the types, profile, build.

Networks are strongly typed: every tensor keeps the type that the graph gives it, so precision is decided before
TensorRT sees it. TensorRT 10 needs a flag for that; 11 knows nothing else and ignores the flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from export.errors import ExportError
from export.graph_file import load_graph
from export.head_graph import VECTOR
from export.tensorrt.profiles import INPUTS, Profile
from export.tensorrt.quantized import constant_products
from serving.engines.loading import start

__all__ = ["BuiltEngine", "EnginePrecision", "build_engine"]

EnginePrecision = Literal["fp16", "int8"]

_REFUSED = {
    "DynamicQuantizeLinear": "dynamic quantisation",
    "MatMulInteger": "dynamic quantisation",
    "QLinearMatMul": "QLinear operators",
}


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine.

    Attributes:
        plan: What Triton loads, or `Runtime.deserialize_cuda_engine`.
        timing_cache: What the builder measured, to be given to the next build on the same GPU; empty if it keeps none.
        products: Names of the graph's matrix products with a constant weight, for `check_engine`.
    """

    plan: bytes
    timing_cache: bytes
    products: tuple[str, ...]


def build_engine(
    trt: Any,
    graph: Path,
    precision: EnginePrecision,
    profiles: Sequence[Profile],
    *,
    timing_cache: bytes = b"",
    workspace_bytes: int = 1 << 30,
) -> BuiltEngine:
    """Builds an engine of an encoder graph.

    Args:
        trt: The module `tensorrt` (10.3 or newer, or 11), or `tensorrt_rtx`.
        graph: An FP16 graph, for `int8` one with symmetric Q/DQ.
        precision: What the matrix products must be.
        profiles: The shapes to tune for; see `make_profiles`.
        timing_cache: What an earlier build measured; a cache of another GPU or version is left unused.
        workspace_bytes: Scratch memory that kernels may take.

    Raises:
        ExportError: The graph has operators or types that TensorRT does not take, a product is not of that precision,
            or the build fails.
        GpuError: TensorRT cannot start CUDA.
    """
    model = load_graph(graph)
    _refuse(model, graph)
    log = _logger(trt)
    builder = start(trt.Builder, log)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise ExportError(f"{graph.name}: TensorRT does not take the graph: {_reasons(parser)}")
    products = tuple(node.name for node in constant_products(model))
    restored = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    _check_types(trt, network, graph.name, precision, len(products), restored)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # `check_engine` reads what it makes known
    cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)
    for wanted in profiles:
        _add_profile(builder, config, wanted)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{graph.name}: TensorRT could not build an engine: {log.said or 'it does not say why'}")
    measured = config.get_timing_cache()
    kept = None if measured is None else measured.serialize()
    return BuiltEngine(plan=bytes(plan), timing_cache=bytes(kept or b""), products=products)


def _creation_flags(trt: Any) -> int:
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # the module is known only here
        """Keeps the last error, to be told in one line; warnings of every build say nothing new."""

        said = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.said = message.strip().splitlines()[0]

    return Logger()


def _refuse(model: onnx.ModelProto, graph: Path) -> None:
    """Says what is wrong with a graph that was made for another runtime; TensorRT's own words are about its parser."""
    unsigned = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8}
    for node in model.graph.node:
        if node.op_type in _REFUSED:
            raise ExportError(
                f"{graph.name}: {node.name or node.op_type} is {_REFUSED[node.op_type]}, which TensorRT does not take; "
                "export with PRECISION=trt-int8"
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and unsigned.intersection(node.input):
            raise ExportError(
                f"{graph.name}: {node.name} quantises to U8, which TensorRT does not take; that is the form for CPUs, "
                "export with PRECISION=trt-int8"
            )


def _reasons(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(min(3, parser.num_errors))]
    return "; ".join(f"{error.node_name() or 'graph'}: {error.desc()}" for error in errors) or "it does not say why"


def _check_types(trt: Any, network: Any, name: str, precision: EnginePrecision, expected: int, restored: int) -> None:
    """A strongly typed engine is what its network says, so FP32 that slipped in would be FP32 in the engine.

    Raises:
        ExportError: An input or output has not the type of the contract, or a product not the type asked for.
    """
    types = {network.get_input(index).name: network.get_input(index).dtype for index in range(network.num_inputs)}
    outputs = {network.get_output(index).name: network.get_output(index).dtype for index in range(network.num_outputs)}
    if types != dict.fromkeys(INPUTS, trt.int64) or outputs != {VECTOR: trt.float32}:
        raise ExportError(
            f"{name}: inputs {types} and outputs {outputs}; INT64 {' and '.join(INPUTS)} and FP32 {VECTOR} are expected"
        )
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    for layer in products:
        found = [layer.get_input(index).dtype for index in range(2)]
        if found != [trt.float16, trt.float16]:
            raise ExportError(
                f"{name}: product {layer.name} takes {_words(found)}, not HALF and HALF; export the graph in FP16"
            )
    if len(products) < expected:
        raise ExportError(f"{name}: {expected} products with a weight went in, TensorRT has {len(products)} in all")
    signed = [
        layer for layer in layers if layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.int8
    ]
    if len(signed) != restored:
        raise ExportError(f"{name}: {restored} tensors are restored from codes, in TensorRT {len(signed)} from INT8")
    if precision == "int8" and not signed:
        raise ExportError(f"{name}: nothing in it is quantised to INT8; it would be a silent FP16 engine")
    if precision == "fp16" and signed:
        raise ExportError(f"{name}: it is quantised; build it with precision int8")


def _words(types: list[Any]) -> str:
    return " and ".join(str(one).rpartition(".")[2] for one in types)


def _add_profile(builder: Any, config: Any, wanted: Profile) -> None:
    profile = builder.create_optimization_profile()
    for name in INPUTS:
        profile.set_shape(name, wanted.smallest, wanted.largest, wanted.largest)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the profile from {wanted.smallest} to {wanted.largest} (batch, length)")
