"""Python-based stand-in for Triton's native `tensorrt` backend, for embedded servers on hosts with a GPU.

The same config variant (`configs/gpu.pbtxt`) serves on both. What the native backend refuses is refused here too; what
it cannot do, this does: an engine that was built on another GPU, driver or TensorRT is not loaded, and the ONNX graph
beside it answers instead, with a warning in the log.
Native parameters: https://github.com/triton-inference-server/tensorrt_backend#parameters.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` and `engines/`, copied beside this file

from engines.cuda import Cuda
from engines.fingerprint import FINGERPRINT_NAME, Fingerprint, GpuError
from engines.runner import INPUTS, OUTPUT, EngineRunner, ShapeError
from steps.batching import answer_batch, tensor
from steps.invalid_request import InvalidRequestError

Tensors = dict[str, npt.NDArray[Any]]

FALLBACK_NAME = "model.onnx"
CONTRACT = {"input": dict.fromkeys(INPUTS, "TYPE_INT64"), "output": {OUTPUT: "TYPE_FP32"}}


class TritonPythonModel:
    """One engine an instance; requests of equal length run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, or the ONNX graph where the engine does not belong."""
        config = json.loads(args["model_config"])
        check_config(config, args["model_instance_kind"])
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self.runner: Any = load_engine(config, folder, int(args["model_instance_device_id"]))
        except (GpuError, ImportError, OSError, ValueError) as error:
            pb_utils.Logger.log_warn(
                f"{args['model_name']} version {args['model_version']}: {error}; the ONNX graph answers instead. "
                "Export again on this host for an engine of its own."
            )
            self.runner = OnnxRunner(folder / FALLBACK_NAME)
        self.max_batch_size = int(config["max_batch_size"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its vectors, or with an error of its own."""
        return answer_batch(requests, self._read, self._run, self._write)

    def _read(self, request: Any) -> Tensors:
        return {name: tensor(request, name) for name in INPUTS}

    def _run(self, feeds: list[Tensors]) -> list[npt.NDArray[np.float32]]:
        groups: dict[int, list[int]] = {}
        for position, feed in enumerate(feeds):
            groups.setdefault(feed[INPUTS[0]].shape[1], []).append(position)
        results: list[Any] = [None] * len(feeds)
        for positions in groups.values():
            ids, mask = (np.concatenate([feeds[position][name] for position in positions]) for name in INPUTS)
            vectors = self._infer(ids, mask)
            stop = 0
            for position in positions:
                start, stop = stop, stop + len(feeds[position][INPUTS[0]])
                results[position] = vectors[start:stop]
        return results

    def _infer(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """In parts of the largest batch: Triton's own batches keep to it, several requests joined here may not."""
        step = self.max_batch_size
        try:
            parts = [
                self.runner.run(ids[start : start + step], mask[start : start + step])
                for start in range(0, len(ids), step)
            ]
        except ShapeError as error:
            raise InvalidRequestError(str(error)) from None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _write(self, vectors: npt.NDArray[np.float32]) -> list[Any]:
        return [pb_utils.Tensor(OUTPUT, np.ascontiguousarray(vectors))]


class OnnxRunner:
    """What answers where the engine does not belong: ONNX Runtime on the CPU, with the graph it was built of."""

    def __init__(self, path: Path) -> None:
        """Open the graph."""
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors [batch, H] of token ids and masks [batch, length]."""
        vectors: npt.NDArray[np.float32] = self._session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))[0]
        return vectors


def load_engine(config: dict[str, Any], folder: Path, device_number: int) -> EngineRunner:
    """Deserialise an engine where it belongs.

    Raises:
        GpuError: There is no GPU or no CUDA, or the engine is of another one.
        ImportError: TensorRT is not installed.
        OSError: The engine or its fingerprint cannot be read.
        ValueError: The fingerprint or the engine is damaged, or the config asks for what it cannot do.
    """
    tensorrt = importlib.import_module("tensorrt")
    built = Fingerprint.read(folder / FINGERPRINT_NAME)
    if difference := built.difference(Fingerprint.here(tensorrt.__version__, device_number)):
        raise GpuError(difference)
    device = Cuda(device_number)
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine((folder / config["default_model_filename"]).read_bytes())
    if engine is None:
        raise ValueError(f"TensorRT refuses {config['default_model_filename']}")
    check_profiles(config, engine.num_optimization_profiles)
    return EngineRunner(engine, device, captured_shapes(config))


def captured_shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """The (batch, length) of every `optimization.cuda.graph_spec`; none unless `graphs` is on."""
    cuda = config.get("optimization", {}).get("cuda", {})
    if not cuda.get("graphs"):
        return []
    return [(int(spec["batch_size"]), int(spec["input"][INPUTS[0]]["dim"][0])) for spec in cuda.get("graph_spec", [])]


def check_profiles(config: dict[str, Any], existing: int) -> None:
    """The config must list all the engine's profiles: this backend uses each of them, as the native one would.

    Raises:
        TritonModelException: It lists others.
    """
    for group in config.get("instance_group", []):
        if [int(number) for number in group.get("profile", [])] != list(range(existing)):
            raise pb_utils.TritonModelException(
                f"{config['name']}: instance_group.profile must list the engine's profiles 0 to {existing - 1}"
            )


def check_config(config: dict[str, Any], kind: str) -> None:
    """Hold the config against the encoder's contract; a setting that is not honoured is refused.

    Raises:
        TritonModelException: A tensor is missing, unknown or of another type, the instance is not on a GPU, there is
            no batch dimension, or there is an unknown parameter.
    """
    name = config["name"]
    for role, expected in CONTRACT.items():
        found = {one["name"]: one["data_type"] for one in config[role]}
        if found != expected:
            raise pb_utils.TritonModelException(f"{name}: {role} {found} in config.pbtxt, an encoder has {expected}")
    if kind != "GPU":
        raise pb_utils.TritonModelException(f"{name}: an engine runs on KIND_GPU only, not on KIND_{kind}")
    if int(config["max_batch_size"]) < 1:
        raise pb_utils.TritonModelException(f"{name}: max_batch_size must be at least 1")
    if config.get("parameters"):
        raise pb_utils.TritonModelException(
            f"{name}: the Python-based tensorrt backend does not know {', '.join(sorted(config['parameters']))}; "
            "remove it from the config"
        )
