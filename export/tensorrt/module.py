"""Finds the TensorRT module and the GPU to build on, or says in one line what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from export.errors import ExportError
from serving.engines.cuda import Cuda
from serving.engines.fingerprint import gpu_in_use
from serving.engines.gpu_error import GpuError
from serving.engines.loading import start

__all__ = ["OLDEST", "gpu_failures_in_one_line", "load_tensorrt", "require_gpu_build"]

OLDEST = (10, 3)
"""The oldest TensorRT whose strongly typed networks take these graphs (opset 20, INT64 inputs, Q/DQ in FP16)."""

_HOW = (
    "run this on the GPU host, in the container that will serve (docs/tensorrt.md), or install it there with "
    "`pip install -r requirements/tensorrt.txt`; without a GPU use PRECISION=int8"
)


@contextmanager
def gpu_failures_in_one_line() -> Iterator[None]:
    """Make what goes wrong on a GPU an error that the command line prints as one line.

    Raises:
        ExportError: In place of GpuError.
    """
    try:
        yield
    except GpuError as error:
        raise ExportError(f"The GPU cannot be used: {error}") from error


def load_tensorrt(name: str = "tensorrt") -> ModuleType:
    """Imports TensorRT.

    Args:
        name: Of the module; `tensorrt_rtx` has the same interface.

    Raises:
        ExportError: It is not installed, cannot be loaded, or is older than `OLDEST`.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"TensorRT is needed and not installed ({error}): {_HOW}") from None
    except OSError as error:  # its shared libraries
        raise ExportError(f"TensorRT is installed and cannot be loaded ({error}): {_HOW}") from None
    version = tuple(int(part) for part in str(getattr(module, "__version__", "0.0")).split(".")[:2])
    if name == "tensorrt" and version < OLDEST:
        raise ExportError(
            f"TensorRT {module.__version__} is too old, {OLDEST[0]}.{OLDEST[1]} is the oldest that will do"
        )
    return module


def require_gpu_build(name: str = "tensorrt") -> ModuleType:
    """Returns TensorRT if an engine can be built here: an engine runs only on the kind of GPU that built it.

    CUDA is started twice, by its bindings and by TensorRT: each has its own oldest driver.

    Raises:
        ExportError: There is no GPU, no TensorRT, no CUDA bindings to run the engine with, or CUDA does not start.
    """
    try:
        gpu_in_use()
        module = load_tensorrt(name)
        Cuda().close()
        start(module.Builder, module.Logger(module.Logger.ERROR))
    except GpuError as error:
        raise ExportError(f"a TensorRT engine needs an NVIDIA GPU to be built on ({error}): {_HOW}") from None
    return module
