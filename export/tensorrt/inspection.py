"""Looks into a built engine: types of its tensors, its profiles, and the precision that its kernels run in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from export.errors import ExportError
from export.head_graph import VECTOR
from export.tensorrt.network import EnginePrecision
from export.tensorrt.profiles import INPUTS, Profile
from serving.engines.gpu_error import GpuError

__all__ = ["check_engine", "check_layers"]

# How engines describe what a layer reads, writes, holds and runs. TensorRT 10 writes `Format/Datatype`, 11 splits it;
# kernels carry their types in their names (sm80_xmma_gemm_f16f16_…, …_i8i8_…).
_SIGNS = {
    "int8": ("int8", "i8i8", "i8f16", "imma"),
    "fp16": ("half", "fp16", "float16", "f16f16", "h16816", "h884"),
}


def check_engine(
    trt: Any, engine: Any, precision: EnginePrecision, profiles: Sequence[Profile], products: Sequence[str]
) -> dict[str, int]:
    """Asserts that an engine is what was asked for; a silent FP32 engine is a failure.

    Args:
        trt: The module that built it.
        engine: An `ICudaEngine`, deserialised on the GPU it was built on.
        precision: Of the products.
        profiles: Those it was built with.
        products: Names of the products in the graph.

    Returns:
        How many layers show each precision.

    Raises:
        ExportError: Types, profiles or precision differ.
        GpuError: The GPU's memory is short.
    """
    types = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        types[name] = engine.get_tensor_dtype(name)
    expected = {**dict.fromkeys(INPUTS, trt.int64), VECTOR: trt.float32}
    if types != expected:
        raise ExportError(f"The engine's tensors are {types}; {expected} were expected.")
    if engine.num_optimization_profiles != len(profiles):
        raise ExportError(
            f"The engine has {engine.num_optimization_profiles} optimisation profiles; {len(profiles)} were asked for."
        )
    for index, profile in enumerate(profiles):
        for name in INPUTS:
            shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, index)]
            if shapes != [profile.smallest, profile.largest, profile.largest]:
                raise ExportError(f"Profile {index} of the engine takes {name} {shapes}, not {profile}.")
    return check_layers(_layers(trt, engine, profiles[0]), precision, products)


def check_layers(layers: Sequence[Any], precision: EnginePrecision, products: Sequence[str]) -> dict[str, int]:
    """Asserts the precision of an engine's layers.

    Args:
        layers: As the engine inspector describes them: a dictionary each, or a mere name.
        precision: At least one layer must show it, and none that holds a product may show FP32 alone.
        products: Names of the products in the graph.

    Returns:
        How many layers show each precision.

    Raises:
        ExportError: A product runs in FP32, or no layer shows the precision.
    """
    count = dict.fromkeys(("int8", "fp16", "other"), 0)
    for layer in layers:
        words = json.dumps(layer).lower()
        shown = next((name for name, signs in _SIGNS.items() if any(sign in words for sign in signs)), "other")
        count[shown] += 1
        held = [name for name in products if name.lower() in words]
        if held and shown == "other" and ("float" in words or "fp32" in words or "f32f32" in words):
            raise ExportError(f"The engine runs {held[0]} in FP32, though the graph is not: it must not be shipped.")
    if not count[precision]:
        raise ExportError(
            f"None of the engine's {len(layers)} layers shows {precision.upper()}: it would be a silent engine of "
            "another precision."
        )
    return count


def _layers(trt: Any, engine: Any, profile: Profile) -> list[Any]:
    """The inspector's layers; with shapes set, as formats are not known before."""
    context = engine.create_execution_context()
    if context is None:
        raise GpuError("TensorRT could not make a context to look into the engine: most often its memory is short")
    inspector = engine.create_engine_inspector()
    for name in INPUTS:
        context.set_input_shape(name, profile.largest)
    inspector.execution_context = context
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers: list[Any] = told["Layers"]
    return layers
