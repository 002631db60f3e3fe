"""ONNX graphs on disk and in memory: write one whole or not at all, and run one the way it is served."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

import numpy.typing as npt
import onnx
import onnxruntime

from export.errors import ExportError
from export.settings import Engine
from serving.steps.encoder_engine import SLOW_FUSIONS, OpenVinoEngine, add_exact_sums

__all__ = [
    "SLOW_FUSIONS",
    "EncoderSession",
    "library_version",
    "load_graph",
    "open_served",
    "open_session",
    "save_graph",
]


class EncoderSession(Protocol):
    """An opened encoder graph, in whatever engine."""

    def run(self, names: Sequence[str], feed: dict[str, npt.NDArray[Any]], /) -> list[npt.NDArray[Any]]:
        """The named outputs."""
        ...


def library_version(name: str) -> str:
    """The version of an installed distribution; "not installed" of another, as OpenVINO where ONNX Runtime serves."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Checks a graph and writes it as one file, without external data. Equal graphs give equal bytes.

    Args:
        graph: The graph.
        path: The file to make or replace. It appears complete or not at all.

    Raises:
        ExportError: The graph is not valid ONNX, is over protobuf's limit of 2 GiB, or the file cannot be written.
    """
    try:
        onnx.checker.check_model(graph)
        content = graph.SerializeToString(deterministic=True)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"{path}: the graph cannot be written: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(content, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write(content: bytes, path: Path) -> None:
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
        try:
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).chmod(0o644)  # temporary files are made for their owner alone
            Path(temporary.name).replace(path)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads a graph.

    Raises:
        ExportError: There is no such file, or it is not ONNX.
    """
    try:
        return onnx.load_model(path)
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file. Export the FP32 graph first.") from error
    except Exception as error:  # protobuf's DecodeError has moved between modules; every failure here means the same
        raise ExportError(f"{path}: not an ONNX graph: {error}") from error


def open_session(graph: Path | onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """Opens a graph on the CPU with the options that suit these graphs.

    Args:
        graph: A file, or a graph in memory.
        threads: Threads within one operator.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    add_exact_sums(options)
    source = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    name = graph if isinstance(graph, Path) else graph.graph.name
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(f"{name}: ONNX Runtime refuses the graph: {error}") from error


def open_served(graph: Path, engine: Engine) -> EncoderSession:
    """Opens an encoder graph in the engine that serves it, with one thread.

    Raises:
        ExportError: The engine is not installed here, or refuses the graph.
    """
    if engine == "onnxruntime":
        session: EncoderSession = open_session(graph)
        return session
    try:
        return OpenVinoEngine(graph)
    except ImportError as error:
        raise ExportError(f"A release is verified with the engine that serves it. {error}.") from error
    except RuntimeError as error:
        raise ExportError(f"{graph}: OpenVINO refuses the graph: {error}") from error
