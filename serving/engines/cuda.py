"""The few calls of CUDA's runtime that running an engine takes, over NVIDIA's own bindings (`cuda-python`)."""

from __future__ import annotations

import ctypes
import importlib
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from .gpu_error import GpuError

__all__ = ["Cuda", "pci_bus_id"]

_RUNTIME = "cuda.bindings.runtime"
_DRIVER_TOO_OLD = 35


def pci_bus_id(device: int) -> str | None:
    """Where CUDA's GPU of this number sits; None if CUDA's bindings are not installed.

    CUDA leaves out what CUDA_VISIBLE_DEVICES hides, and counts from the fastest; `nvidia-smi` does neither.

    Raises:
        GpuError: There is no such GPU, or CUDA does not start.
    """
    try:
        runtime = importlib.import_module(_RUNTIME)
    except ImportError:
        return None
    found: bytes = _call(runtime, "cudaDeviceGetPCIBusId", 32, device)
    return found.split(b"\0")[0].decode().strip()


class Cuda:
    """One GPU and one stream. Memory lives as long as the object: an engine's buffers are made once and reused."""

    def __init__(self, device: int = 0) -> None:
        """Take a GPU.

        Raises:
            GpuError: The bindings are not installed, or there is no such GPU.
        """
        try:
            self._runtime: Any = importlib.import_module(_RUNTIME)
        except ImportError:
            raise GpuError("CUDA's Python bindings are needed: `pip install -r requirements/tensorrt.txt`") from None
        self._call("cudaSetDevice", device)
        self._stream = self._call("cudaStreamCreate")
        self._device: list[int] = []
        self._host: list[int] = []
        self._graphs: list[Any] = []

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream)

    def device_buffer(self, size: int) -> int:
        """Address of `size` bytes of the GPU's memory."""
        address = int(self._call("cudaMalloc", size))
        self._device.append(address)
        return address

    def host_buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array in pinned memory, which the GPU copies from and to by itself."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cudaMallocHost", size))
        self._host.append(address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return memory.view(dtype).reshape(shape)

    def to_device(self, address: int, values: npt.NDArray[Any], size: int) -> None:
        """Queue a copy of the first `size` bytes of a pinned array to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, values.ctypes.data, size, kind, self._stream)

    def to_host(self, values: npt.NDArray[Any], address: int, size: int) -> None:
        """Queue a copy of `size` bytes from the GPU to a pinned array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, address, size, kind, self._stream)

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it."""
        # Other threads (other instances) may allocate meanwhile.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any:
        """Return what was recorded as a graph for `launch`."""
        graph = self._call("cudaStreamEndCapture", self._stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._graphs.append(executable)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def wait(self) -> None:
        """Wait until all that is queued is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give all back, as far as a GPU that has failed still takes it; nothing of it may be used any more."""
        held = [("cudaStreamSynchronize", self._stream), *(("cudaGraphExecDestroy", graph) for graph in self._graphs)]
        held += [("cudaFree", address) for address in self._device]
        held += [("cudaFreeHost", address) for address in self._host]
        for name, handle in (*held, ("cudaStreamDestroy", self._stream)):
            with suppress(GpuError):
                self._call(name, handle)
        self._device, self._host, self._graphs = [], [], []

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._runtime, name, *arguments)


def _call(runtime: Any, name: str, *arguments: Any) -> Any:
    try:
        status, *values = getattr(runtime, name)(*arguments)
    except RuntimeError as error:  # the driver's own library is missing
        raise GpuError(f"{name} failed: {error}") from None
    if int(status) != 0:
        _, text = runtime.cudaGetErrorString(status)
        advice = ": update the driver, or install an older cuda-python" if int(status) == _DRIVER_TOO_OLD else ""
        raise GpuError(f"{name} failed: {text.decode() if isinstance(text, bytes) else text}{advice}")
    return values[0] if values else None
