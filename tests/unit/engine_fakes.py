"""A GPU and an engine in the host's memory, for tests of what is queued, recorded and replayed."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH = 3
"""Of the vectors that `Engine` answers with."""


class Memory:
    """A GPU in the host's memory: what is queued runs at once, or later if it is being recorded."""

    stream = 7

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.recording: list[Any] | None = None
        self.launched = self.captured = 0

    def device_buffer(self, size: int) -> int:
        self.buffers[len(self.buffers) + 1] = bytearray(size)
        return len(self.buffers)

    def host_buffer(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.full(shape, 99, dtype)  # whatever was there before

    def queue(self, work: Any) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def to_device(self, address: int, values: Any, size: int) -> None:
        def copy() -> None:
            self.buffers[address][:size] = values.tobytes()[:size]

        self.queue(copy)

    def to_host(self, values: Any, address: int, size: int) -> None:
        def copy() -> None:
            found = np.frombuffer(bytes(self.buffers[address][:size]), values.dtype)
            values.reshape(-1)[: found.size] = found

        self.queue(copy)

    def begin_capture(self) -> None:
        self.recording = []

    def end_capture(self) -> list[Any]:
        graph, self.recording = self.recording or [], None
        self.captured += 1
        return graph

    def launch(self, graph: list[Any]) -> None:
        self.launched += 1
        for work in graph:
            work()

    def wait(self) -> None:
        pass


class Engine:
    """Answers a row with its count of tokens, their sum, and its length; two profiles."""

    profiles = (((1, 1), (4, 8), (4, 8)), ((1, 9), (4, 16), (4, 16)))
    num_optimization_profiles = 2

    def __init__(self, memory: Memory) -> None:
        self.memory, self.contexts, self.ran = memory, [], []

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        assert name in {"input_ids", "attention_mask"}
        return self.profiles[index]

    def get_tensor_shape(self, name: str) -> Any:
        assert name == "instruction_vector"
        return (-1, WIDTH)

    def create_execution_context(self) -> Any:
        context = Context(self)
        self.contexts.append(context)
        return context


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shapes, self.profile = engine, {}, {}, None

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        assert stream == Memory.stream
        self.profile = profile

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> None:
        smallest, _, largest = self.engine.profiles[self.profile]
        assert all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        self.shapes[name] = shape

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Memory.stream
        shape = self.shapes["input_ids"]

        def work() -> None:
            buffers = self.engine.memory.buffers
            ids, mask = (
                np.frombuffer(bytes(buffers[self.addresses[name]]), np.int64)[: shape[0] * shape[1]].reshape(shape)
                for name in ("input_ids", "attention_mask")
            )
            values = np.stack([mask.sum(1), (ids * mask).sum(1), np.full(len(ids), shape[1])], 1).astype(np.float32)
            buffers[self.addresses["instruction_vector"]][: values.nbytes] = values.tobytes()
            self.engine.ran.append(shape)

        self.engine.memory.queue(work)
        return True


def expected(ids: Any, mask: Any) -> Any:
    return np.stack([mask.sum(1), (ids * mask).sum(1), np.full(len(ids), ids.shape[1])], 1)
