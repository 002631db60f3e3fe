"""What runs an ONNX graph on the CPU: ONNX Runtime or OpenVINO, behind one small interface.

Each engine is imported when it is opened, so that a step pays for the one it uses alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ENGINES = ("onnxruntime", "openvino")
SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions of ONNX Runtime whose CPU kernels are slower than the nodes they replace (1.30 to 1.32).

Without them a graph takes 0.87 to 0.94 of the time in FP32, 0.75 to 0.8 in INT8. The native Triton backend has no such
switch. The way there is to save the graph as this session optimised it and to load that with graph optimisation off.
"""

CPU_INFORMATION = Path("/proc/cpuinfo")
EXACT_SUMS = "session.x64quantprecision"
"""ONNX Runtime's setting for kernels of U8 times U8, slower but for CPUs without VNNI: the same sums as with it."""


def sums_overflow(information: Path = CPU_INFORMATION) -> bool:
    """Whether this CPU's kernels of U8 times S8 add pairs of products up in 16 bits, where two great ones overflow.

    So it is on x86 without VNNI (ONNX Runtime, pull request 12088).

    Args:
        information: what Linux says of the processors.
    """
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return bool(flags & {"ssse3", "avx2"}) and not flags & {"avx512_vnni", "avx_vnni"}


def add_exact_sums(options: Any) -> None:
    """Have a session sum as CPUs with VNNI do, where this one is none, so that a release answers alike on all.

    Args:
        options: `onnxruntime.SessionOptions`.
    """
    if sums_overflow():
        options.add_session_config_entry(EXACT_SUMS, "1")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the graph declares it.

    Attributes:
        name: its name.
        data_type: as config.pbtxt writes it (`TYPE_INT64`); None where Triton has no such type.
        described: the engine's own word for the type, for messages.
        shape: its sizes; None where a size is free.
    """

    name: str
    data_type: str | None
    described: str
    shape: tuple[int | None, ...]


class Engine(Protocol):
    """A graph that is ready to run."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Compute the named outputs; `feed` holds every input, C-contiguous, in the graph's dtypes."""
        ...


_ONNX_RUNTIME_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int8)": "TYPE_INT8",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}


class OnnxRuntimeEngine:
    """One ONNX Runtime session on the CPU."""

    def __init__(self, path: Path, options: Any = None) -> None:
        """Open a graph.

        Args:
            path: the ONNX file.
            options: `onnxruntime.SessionOptions`; one thread if left out.
        """
        import onnxruntime  # noqa: PLC0415 - see the module's docstring

        if options is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3
        add_exact_sums(options)
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
        )
        self.inputs = [self._info(one) for one in self._session.get_inputs()]
        self.outputs = [self._info(one) for one in self._session.get_outputs()]

    def _info(self, tensor: Any) -> TensorInfo:
        shape = tuple(size if isinstance(size, int) else None for size in tensor.shape)
        return TensorInfo(tensor.name, _ONNX_RUNTIME_TYPES.get(tensor.type), tensor.type, shape)

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Compute the named outputs."""
        outputs: list[Array] = self._session.run(names, feed)
        return outputs


_OPENVINO_TYPES = {
    "f32": "TYPE_FP32",
    "f16": "TYPE_FP16",
    "f64": "TYPE_FP64",
    "i64": "TYPE_INT64",
    "i32": "TYPE_INT32",
    "i8": "TYPE_INT8",
    "u8": "TYPE_UINT8",
    "boolean": "TYPE_BOOL",
}


class OpenVinoEngine:
    """One OpenVINO inference request on the CPU, over a graph of free shapes.

    A shape that runs for the first time costs 3 to 30 ms more, for the kernels made for it; compiling the graph anew
    for each shape would cost a second. With an INT8 graph its sums depend on a row's length unless that is a multiple
    of 16, a vector register's width: pad to such lengths where answers must not depend on padding.

    Whatever is not INT8 is computed in FP32: left to itself, OpenVINO takes BF16 on every CPU that has instructions for
    it, which moves vectors and brings nothing without AMX.
    """

    def __init__(self, path: Path, properties: Mapping[str, Any] | None = None) -> None:
        """Compile a graph.

        Args:
            path: an ONNX or IR file.
            properties: OpenVINO's own; one thread and one stream if left out, FP32 if no precision is among them.
                Threads are never pinned to cores: steps share them.

        Raises:
            ImportError: OpenVINO is not installed; the message says how to get it.
        """
        try:
            import openvino  # noqa: PLC0415 - see the module's docstring
        except ImportError:
            raise ImportError(
                "OpenVINO is not installed where Triton's Python runs: pip install 'instructrec[openvino]', "
                "or export with serving.engine=onnxruntime"
            ) from None
        settings = dict(properties) if properties is not None else {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        settings = {"INFERENCE_PRECISION_HINT": "f32"} | settings | {"ENABLE_CPU_PINNING": False}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        self._request = compiled.create_infer_request()
        self.inputs = [self._info(port) for port in compiled.inputs]
        self.outputs = [self._info(port) for port in compiled.outputs]
        self._row_of = {info.name: row for row, info in enumerate(self.outputs)}

    def _info(self, port: Any) -> TensorInfo:
        described = port.get_element_type().get_type_name()
        shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
        return TensorInfo(port.get_any_name(), _OPENVINO_TYPES.get(described), described, shape)

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Compute the named outputs; inputs are not copied, outputs are, for the next run writes over them."""
        self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return [np.array(self._request.get_output_tensor(self._row_of[name]).data) for name in names]


def open_engine(engine: str, path: Path, threads: int) -> Engine:
    """Open a graph with the engine of that name.

    Raises:
        ValueError: there is no such engine.
    """
    if engine == "openvino":
        return OpenVinoEngine(path, {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})
    if engine != "onnxruntime":
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    import onnxruntime  # noqa: PLC0415 - see the module's docstring

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return OnnxRuntimeEngine(path, options)
