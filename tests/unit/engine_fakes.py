"""A GPU and an engine in the host's memory, for tests of what is queued, recorded and replayed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.engines.fingerprint import Fingerprint

BUILT = Fingerprint("NVIDIA L4", "8.9", "550.54", "10.9.0")

WIDTH = 3
"""Of the vectors that `Engine` answers with."""
TENSORRT = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="shared"))
"""As much of TensorRT as runs an engine."""


class Memory:
    """A GPU in the host's memory: what is queued runs at once, or later if it is being recorded."""

    stream = 7

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.recording: list[Any] | None = None
        self.launched = self.captured = 0
        self.closed = False

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

    def close(self) -> None:
        self.closed = True


class Engine:
    """Answers a row with its count of tokens, their sum, and its length; two profiles."""

    profiles = (((1, 1), (4, 8), (4, 8)), ((1, 9), (4, 16), (4, 16)))
    num_optimization_profiles = 2
    device_memory_size_v2 = 4096
    num_io_tensors = 3

    def __init__(self, memory: Memory, room: int = 99) -> None:
        """Keep the count of contexts that the GPU's memory has room for."""
        self.memory, self.room, self.contexts, self.ran = memory, room, [], []
        self.types = {"input_ids": "INT64", "attention_mask": "INT64", "instruction_vector": "FLOAT"}

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        assert name in {"input_ids", "attention_mask"}
        return self.profiles[index]

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types[name])

    def answer(self, ids: Any, mask: Any) -> Any:
        return expected(ids, mask).astype(np.float32)

    def get_tensor_shape(self, name: str) -> Any:
        return (-1, WIDTH if name == "instruction_vector" else -1)

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "shared"
        if len(self.contexts) == self.room:
            return None  # TensorRT's way to say it
        context = Context(self)
        self.contexts.append(context)
        return context


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shapes, self.profile = engine, {}, {}, 0
        self.memory: tuple[int, int] | None = None
        self.recorded = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == Memory.stream
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.engine.memory.buffers[address]) == size >= self.engine.device_memory_size_v2
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        smallest, _, largest = self.engine.profiles[self.profile]
        assert all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        assert not self.recorded or self.shapes[name] == shape  # what was recorded with it would be wrong
        self.shapes[name] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Memory.stream
        assert self.memory is not None
        self.recorded |= self.engine.memory.recording is not None
        shape = self.shapes["input_ids"]

        def work() -> None:
            buffers = self.engine.memory.buffers
            ids, mask = (
                np.frombuffer(bytes(buffers[self.addresses[name]]), np.int64)[: shape[0] * shape[1]].reshape(shape)
                for name in ("input_ids", "attention_mask")
            )
            values = self.engine.answer(ids, mask)
            buffers[self.addresses["instruction_vector"]][: values.nbytes] = values.tobytes()
            self.engine.ran.append(shape)

        self.engine.memory.queue(work)
        return True


def expected(ids: Any, mask: Any) -> Any:
    return np.stack([mask.sum(1), (ids * mask).sum(1), np.full(len(ids), ids.shape[1])], 1)


def put_nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str | None, status: int = 0) -> None:
    """A path with an `nvidia-smi` that answers as told; told nothing, there is none."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "nvidia-smi"
    program.unlink(missing_ok=True)
    if answer is not None:
        program.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin" if answer is not None else str(programs))


class CudaRuntime:
    """The calls of CUDA's bindings; each that is in `failing` gives that status."""

    def __init__(self, failing: dict[str, int] | None = None) -> None:
        self.failing, self.calls = failing or {}, []

    def __getattr__(self, name: str) -> Any:
        answers = {"cudaDeviceGetPCIBusId": b"0000:65:00.0\0" + b" " * 19, "cudaStreamCreate": 7, "cudaMalloc": 256}

        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == "cudaGetErrorString":
                return 0, f"status {arguments[0]}".encode()
            self.calls.append((name, *arguments))
            status = self.failing.get(name, 0)
            return status, None if status else answers.get(name)

        return call


def put_cuda(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
