"""Runs batches on an engine: buffers made once, one context a profile, a CUDA graph for each shape that is common."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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

    def __init__(self, engine: Any, device: Device, captured: Iterable[Shape] = ()) -> None:
        """Make the buffers, sized for the largest shape of any profile.

        Args:
            engine: An `ICudaEngine` with INT64 `input_ids` and `attention_mask` and FP32 `instruction_vector`.
            device: The GPU it was deserialised on.
            captured: Shapes (batch, length) that get a CUDA graph the first time they run. A smaller batch of that
                length is filled up to the next of them with rows of padding, which change no other row's answer.
        """
        self._engine, self._device = engine, device
        self._profiles = [
            tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(INPUTS[0], index))
            for index in range(engine.num_optimization_profiles)
        ]
        rows = max(largest[0] for _, _, largest in self._profiles)
        tokens = max(largest[0] * largest[1] for _, _, largest in self._profiles)
        self._width = int(engine.get_tensor_shape(OUTPUT)[1])
        self._inputs = {name: device.host_buffer((tokens,), np.int64) for name in INPUTS}
        self._vectors: npt.NDArray[np.float32] = device.host_buffer((rows, self._width), np.float32)
        self._addresses = {name: device.device_buffer(tokens * 8) for name in INPUTS}
        self._addresses[OUTPUT] = device.device_buffer(rows * self._width * 4)
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[Shape, Any] = {}
        self._batches: dict[int, list[int]] = {}
        for batch, length in sorted(captured):
            self._profile_of(batch, length)  # a shape that cannot run is a mistake in the config
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
        """
        rows, length = ids.shape
        batches = self._batches.get(length, [])
        position = bisect_left(batches, rows)
        captured = position < len(batches)
        batch = batches[position] if captured else rows
        for name, values in zip(INPUTS, (ids, mask), strict=True):
            staged = self._inputs[name][: batch * length].reshape(batch, length)
            staged[:rows] = values
            staged[rows:] = 0
        if captured:
            self._replay(batch, length)
        else:
            self._queue(batch, length)
        self._device.wait()
        return self._vectors[:rows].copy()

    def _replay(self, batch: int, length: int) -> None:
        graph = self._graphs.get((batch, length))
        if graph is None:
            self._queue(batch, length)  # the first run sets up what must not be recorded
            self._device.wait()
            self._device.begin_capture()
            try:
                self._queue(batch, length)
            finally:
                graph = self._device.end_capture()  # a stream left recording would never run again
            self._graphs[(batch, length)] = graph
        self._device.launch(graph)

    def _queue(self, batch: int, length: int) -> None:
        """Copy in, run, copy out, all on the stream."""
        context = self._context(self._profile_of(batch, length))
        for name in INPUTS:
            self._device.to_device(self._addresses[name], self._inputs[name], batch * length * 8)
            context.set_input_shape(name, (batch, length))
        if not context.execute_async_v3(self._device.stream):
            raise RuntimeError(f"TensorRT could not run a batch of {batch} rows of {length} tokens")
        self._device.to_host(self._vectors, self._addresses[OUTPUT], batch * self._width * 4)

    def _profile_of(self, batch: int, length: int) -> int:
        for index, (smallest, _, largest) in enumerate(self._profiles):
            if smallest[0] <= batch <= largest[0] and smallest[1] <= length <= largest[1]:
                return index
        raise ShapeError(f"the engine has no profile for {batch} rows of {length} tokens")

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            context.set_optimization_profile_async(profile, self._device.stream)
            self._device.wait()
            for name, address in self._addresses.items():
                context.set_tensor_address(name, address)
            self._contexts[profile] = context
        return self._contexts[profile]
