"""Python-based stand-in for Triton's native `tensorrt` backend, for embedded servers on hosts with a GPU.

The same config variant (`configs/gpu.pbtxt`) serves on both. What the native backend refuses is refused here too; what
it cannot do, this does: where the engine does not run (it is of another GPU, driver or TensorRT, or memory is short),
the ONNX graph beside it answers, as the `onnxruntime` backend would, with a warning in the log.
Native parameters: https://github.com/triton-inference-server/tensorrt_backend#parameters.
"""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` and `engines/`, copied beside this file

from engines.cuda import Cuda
from engines.fingerprint import FINGERPRINT_NAME, Fingerprint, GpuError
from engines.loading import deserialize
from engines.runner import INPUTS, EngineRunner, ShapeError
from steps.encoder_engine import Engine, TensorInfo, open_engine
from steps.graph_model import GraphModel, Tensors, parameters, refuse, whole_number
from steps.invalid_request import InvalidRequestError

FALLBACK_NAME = "model.onnx"
THREADS = "intra_op_thread_count"
"""Of ONNX Runtime, where the graph answers; the one parameter here. The native backend passes over it."""
_TYPES = {"INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "FLOAT": "TYPE_FP32", "HALF": "TYPE_FP16"}


class TritonPythonModel:
    """One engine an instance, or one ONNX graph in its place."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, or the ONNX graph where the engine does not run."""
        config = json.loads(args["model_config"])
        threads = check_config(config, args["model_instance_kind"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.model: GraphModel = EngineModel()
        session: Engine
        try:
            session = load_engine(config, folder, int(args["model_instance_device_id"]))
        except pb_utils.TritonModelException:
            raise
        except Exception as error:  # noqa: BLE001 - whatever keeps the engine from running, the graph needs no GPU
            pb_utils.Logger.log_warn(
                f"{args['model_name']} version {args['model_version']}: {error} ({type(error).__name__}); "
                "the ONNX graph answers instead"
            )
            self.model, session = OnnxModel(), open_engine("onnxruntime", folder / FALLBACK_NAME, threads)
        self.model.use(session, config)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its vectors, or with an error of its own."""
        return self.model.execute(requests)


class OnnxModel(GraphModel):
    """The graph that the engine was built of, on the CPU."""

    length_multiple = 1


class EngineSession:
    """An engine behind the interface of an open graph."""

    def __init__(self, engine: Any, runner: EngineRunner) -> None:
        """Read what the engine takes and gives.

        Args:
            engine: The `ICudaEngine`.
            runner: What runs it.
        """
        self._runner = runner
        self.largest_batch = runner.largest_batch
        tensors = [_described(engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
        self.inputs = [one for one in tensors if one.name in INPUTS]
        self.outputs = [one for one in tensors if one.name not in INPUTS]

    def run(self, names: Sequence[str], feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Vectors of at most `largest_batch` rows.

        Raises:
            ShapeError: No profile takes the shape.
        """
        return [self._runner.run(*(feed[name] for name in INPUTS))]


def _described(engine: Any, name: str) -> TensorInfo:
    data_type = engine.get_tensor_dtype(name).name
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    return TensorInfo(name, _TYPES.get(data_type), data_type, shape)


class EngineModel(GraphModel):
    """Requests of equal length run as one batch: the engine is tuned, and its graphs recorded, for padded lengths."""

    session: EngineSession

    def _run(self, feeds: list[Tensors]) -> list[Tensors]:
        return self._run_shapes(feeds)

    def _infer(self, batch: Tensors) -> list[npt.NDArray[Any]]:
        """In parts of the largest batch: Triton's own batches keep to it, several requests joined here may not."""
        step, rows = self.session.largest_batch, len(batch[INPUTS[0]])
        try:
            parts = [
                self.session.run(self.output_names, {name: batch[name][start : start + step] for name in INPUTS})
                for start in range(0, rows, step)
            ]
        except ShapeError as error:
            raise InvalidRequestError(str(error)) from None
        return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]


def load_engine(config: dict[str, Any], folder: Path, device_number: int) -> EngineSession:
    """Make an engine ready where it belongs.

    Raises:
        TritonModelException: The config asks for what the engine cannot do.
        GpuError: There is no GPU or no CUDA, its memory is short, or the engine is of another one.
        ImportError: TensorRT is not installed.
        OSError: The engine or its fingerprint cannot be read.
        ValueError: The fingerprint is damaged.
    """
    tensorrt = importlib.import_module("tensorrt")
    built = Fingerprint.read(folder / FINGERPRINT_NAME)
    if difference := built.difference(Fingerprint.here(tensorrt.__version__, device_number)):
        raise GpuError(f"{difference}; export again on this host for an engine of its own")
    device = Cuda(device_number)
    try:
        engine = deserialize(tensorrt, (folder / config["default_model_filename"]).read_bytes())
        check_profiles(config, engine)
        return EngineSession(engine, EngineRunner(tensorrt, engine, device, captured_shapes(config)))
    except ShapeError as error:
        device.close()
        raise pb_utils.TritonModelException(f"{config['name']}: optimization.cuda.graph_spec: {error}") from None
    except BaseException:
        device.close()
        raise


def captured_shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """The (batch, length) of every `optimization.cuda.graph_spec`; none unless `graphs` is on."""
    cuda = config.get("optimization", {}).get("cuda", {})
    if not cuda.get("graphs"):
        return []
    return [(int(spec["batch_size"]), int(spec["input"][INPUTS[0]]["dim"][0])) for spec in cuda.get("graph_spec", [])]


def check_profiles(config: dict[str, Any], engine: Any) -> None:
    """The config must list all the engine's profiles, which this backend uses as the native one would, and fit them.

    Raises:
        TritonModelException: It lists others, or its batches are larger than any of them takes.
    """
    existing = engine.num_optimization_profiles
    for group in config.get("instance_group", []):
        if [int(number) for number in group.get("profile", [])] != list(range(existing)):
            raise pb_utils.TritonModelException(
                f"{config['name']}: instance_group.profile must list the engine's profiles 0 to {existing - 1}"
            )
    largest = max(engine.get_tensor_profile_shape(INPUTS[0], index)[2][0] for index in range(existing))
    if int(config["max_batch_size"]) > largest:
        raise pb_utils.TritonModelException(
            f"{config['name']}: max_batch_size is {config['max_batch_size']} in the config, the engine takes {largest}"
        )


def check_config(config: dict[str, Any], kind: str) -> int:
    """Refuse a config that no engine can honour; its tensors are held against the engine's own.

    Returns:
        The threads of the ONNX graph, where it answers.

    Raises:
        TritonModelException: The instance is not on a GPU, there is no batch dimension, or a setting is unknown.
    """
    name, settings = config["name"], parameters(config)
    if kind != "GPU":
        raise pb_utils.TritonModelException(f"{name}: an engine runs on KIND_GPU only, not on KIND_{kind}")
    if int(config["max_batch_size"]) < 1:
        raise pb_utils.TritonModelException(f"{name}: max_batch_size must be at least 1")
    threads = whole_number(THREADS, settings.pop(THREADS, "1"), 1024)
    cuda = config.get("optimization", {}).get("cuda", {})
    unknown = [f"optimization.cuda.{one}" for one in ("busy_wait_events", "output_copy_stream") if cuda.get(one)]
    refuse(config, "tensorrt", [*settings, *unknown])
    return threads
