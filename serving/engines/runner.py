"""Runs batches on an engine: all that is needed made once, a context a profile, a CUDA graph for each common shape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .gpu_error import GpuError

__all__ = ["Device", "EngineRunner", "ShapeError"]

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "instruction_vector"

Shape = tuple[int, int]


class Device(Protocol):
    """What `Cuda` offers; tests put memory of the host in its place."""

    @property
    def stream(self) -> int: ...  # noqa: D102
    def device_buffer(self, size: int) -> int: ...  # noqa: D102
    def host_buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...  # noqa: D102
    def to_device(self, address: int, values: npt.NDArray[Any], size: int) -> None: ...  # noqa: D102
    def to_host(self, values: npt.NDArray[Any], address: int, size: int) -> None: ...  # noqa: D102
    def begin_capture(self) -> None: ...  # noqa: D102
    def end_capture(self) -> Any: ...  # noqa: D102
    def launch(self, graph: Any) -> None: ...  # noqa: D102
    def wait(self) -> None: ...  # noqa: D102


class ShapeError(ValueError):
    """No profile of the engine takes a batch of this shape."""


class EngineRunner:
    """An engine ready to run; not for several threads at a time."""

    def __init__(self, trt: Any, engine: Any, device: Device, captured: Iterable[Shape] = ()) -> None:
        """Make buffers, contexts and CUDA graphs, so that memory is short now or never.

        Args:
            trt: The module that deserialised the engine.
            engine: An `ICudaEngine` with INT64 `input_ids` and `attention_mask` and FP32 `instruction_vector`.
            device: The GPU it was deserialised on.
            captured: Shapes (batch, length) that get a CUDA graph. A smaller batch of that length is filled up to the
                next of them with rows of padding, which change no other row's answer.

        Raises:
            ShapeError: No profile takes a captured shape.
            GpuError: The GPU's memory is short, or the engine does not run.
        """
        self._trt, self._engine, self._device = trt, engine, device
        self._profiles = [
            tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(INPUTS[0], index))
            for index in range(engine.num_optimization_profiles)
        ]
        self.largest_batch = max(largest[0] for _, _, largest in self._profiles)
        tokens = max(largest[0] * largest[1] for _, _, largest in self._profiles)
        self._width = int(engine.get_tensor_shape(OUTPUT)[1])
        self._inputs = {name: device.host_buffer((tokens,), np.int64) for name in INPUTS}
        for values in self._inputs.values():
            values[:] = 0  # shapes are recorded with it, and not any number is a token's
        self._vectors: npt.NDArray[np.float32] = device.host_buffer((self.largest_batch, self._width), np.float32)
        self._addresses = {name: device.device_buffer(tokens * 8) for name in INPUTS}
        self._addresses[OUTPUT] = device.device_buffer(self.largest_batch * self._width * 4)
        self._scratch_bytes = max(1, int(engine.device_memory_size_v2))
        self._scratch = device.device_buffer(self._scratch_bytes)
        self._contexts = [self._context(profile) for profile in range(len(self._profiles))]
        self._graphs: dict[Shape, tuple[Any, Any]] = {}
        self._batches: dict[int, list[int]] = {}
        for batch, length in sorted(set(captured)):
            self._graphs[(batch, length)] = self._record(batch, length)
            self._batches.setdefault(length, []).append(batch)

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors of a batch.

        Args:
            ids: Token ids, [batch, length].
            mask: 1 for text, 0 for padding, [batch, length].

        Returns:
            [batch, H], a copy of its own.

        Raises:
            ShapeError: No profile takes the shape.
            GpuError: The GPU fails.
        """
        rows, length = ids.shape
        profile = self._profile_of(rows, length)
        batches = self._batches.get(length, [])
        position = bisect_left(batches, rows)
        captured = position < len(batches)
        batch = batches[position] if captured else rows
        for name, values in zip(INPUTS, (ids, mask), strict=True):
            staged = self._inputs[name][: batch * length].reshape(batch, length)
            staged[:rows] = values
            staged[rows:] = 0
        if captured:
            self._device.launch(self._graphs[(batch, length)][1])
        else:
            self._queue(self._contexts[profile], batch, length)
        self._device.wait()
        return self._vectors[:rows].copy()

    def _record(self, batch: int, length: int) -> tuple[Any, Any]:
        """A CUDA graph and its context: one that is used for other shapes as well may not be replayed."""
        context = self._context(self._profile_of(batch, length))
        self._queue(context, batch, length)  # the first run sets up what must not be recorded
        self._device.wait()
        self._device.begin_capture()
        try:
            self._queue(context, batch, length)
        finally:
            graph = self._device.end_capture()  # a stream left recording would never run again
        return context, graph

    def _queue(self, context: Any, batch: int, length: int) -> None:
        """Copy in, run, copy out, all on the stream."""
        ready = True
        for name in INPUTS:
            self._device.to_device(self._addresses[name], self._inputs[name], batch * length * 8)
            ready &= context.set_input_shape(name, (batch, length))
        if not (ready and context.execute_async_v3(self._device.stream)):
            raise GpuError(f"TensorRT could not run a batch of {batch} rows of {length} tokens")
        self._device.to_host(self._vectors, self._addresses[OUTPUT], batch * self._width * 4)

    def _profile_of(self, batch: int, length: int) -> int:
        for index, (smallest, _, largest) in enumerate(self._profiles):
            if smallest[0] <= batch <= largest[0] and smallest[1] <= length <= largest[1]:
                return index
        raise ShapeError(f"the engine has no profile for {batch} rows of {length} tokens")

    def _context(self, profile: int) -> Any:
        """A context; all share one piece of memory for what a run leaves behind, as one batch runs at a time."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise GpuError(
                f"TensorRT could not make a context for the engine's profile {profile}: most often the GPU's memory is "
                "short, so free some, or set serving.encoder_instances lower"
            )
        context.set_device_memory(self._scratch, self._scratch_bytes)
        self._device.wait()
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        return context
