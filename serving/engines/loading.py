"""TensorRT's own objects, made so that a failure is an error: it tells of one by null pointers and its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .gpu_error import GpuError

__all__ = ["deserialize", "start"]


def start(kind: Callable[[Any], Any], log: Any) -> Any:
    """Make TensorRT's `Runtime` or `Builder`, the first of it that needs CUDA.

    Raises:
        GpuError: CUDA does not start.
    """
    try:
        return kind(log)
    except TypeError:  # pybind11's word for a null pointer
        raise GpuError(
            "TensorRT cannot start CUDA, most often as the driver is older than its CUDA: update the driver, or "
            "install the TensorRT for the CUDA version that nvidia-smi shows"
        ) from None


def deserialize(trt: Any, plan: bytes) -> Any:
    """An `ICudaEngine` of a serialised one, on the GPU that this thread has taken.

    Raises:
        GpuError: CUDA does not start, the engine is damaged or foreign, or the GPU's memory is short.
    """
    engine = start(trt.Runtime, trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    if engine is None:
        raise GpuError("TensorRT refuses the engine; its own message stands in the log")
    return engine
