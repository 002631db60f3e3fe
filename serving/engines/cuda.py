"""The few calls of CUDA's runtime that running an engine takes, over NVIDIA's own bindings (`cuda-python`)."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .fingerprint import GpuError

__all__ = ["Cuda"]


class Cuda:
    """One GPU and one stream. Memory lives as long as the object: an engine's buffers are made once and reused."""

    def __init__(self, device: int = 0) -> None:
        """Take a GPU.

        Raises:
            GpuError: The bindings are not installed, or there is no such GPU.
        """
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise GpuError("CUDA's Python bindings are needed: `pip install -r requirements/tensorrt.txt`") from None
        self._call("cudaSetDevice", device)
        self._stream = self._call("cudaStreamCreate")
        self._device: list[int] = []
        self._host: list[int] = []

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
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def wait(self) -> None:
        """Wait until all that is queued is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give all memory back; arrays of `host_buffer` must not be used any more."""
        self.wait()
        for address in self._device:
            self._call("cudaFree", address)
        for address in self._host:
            self._call("cudaFreeHost", address)
        self._device, self._host = [], []
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            raise GpuError(f"{name} failed: {text.decode() if isinstance(text, bytes) else text}")
        return values[0] if values else None
