"""Python-based stand-in for Triton's native `onnxruntime` backend, so that one config.pbtxt serves on both.

It refuses at load what the native backend refuses (names, dtypes and dims that differ from the model's), honours every
parameter that the native backend knows on a CPU, and refuses the others: a setting that is silently ignored is a wrong
setting.
Native parameters: https://github.com/triton-inference-server/onnxruntime_backend#other-optimization-options-with-onnx-runtime.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/`, copied beside this file when the backend is assembled

from steps.batching import answer_batch, tensor

Tensors = dict[str, npt.NDArray[Any]]

DTYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int8)": "TYPE_INT8",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}
# ORT 1.30 to 1.32 run these two fused kernels slower than what they replace: 0.87 to 0.94 of the time without them in
# FP32, 0.75 to 0.8 in INT8.
SLOW_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]

# MiniLM at 32 rows of 256 tokens keeps 300 MB, at 8 rows 75 MB, and is no faster a row.
ELEMENTS_A_RUN = 2048

# As the native backend reads `optimization.graph.level`; 2 disables everything.
GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One ONNX Runtime session an instance; requests of equal shape run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session with the config's settings and check the config against it."""
        config = json.loads(args["model_config"])
        path = (
            Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
        )
        if args["model_instance_kind"] != "CPU":
            raise pb_utils.TritonModelException(
                f"{args['model_name']}: this backend runs on KIND_CPU only; "
                f"for {args['model_instance_kind']} use a stock Triton image"
            )
        self.session = onnxruntime.InferenceSession(
            str(path), session_options(config), providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
        )
        check_tensors("input", config["input"], self.session.get_inputs(), batched=config["max_batch_size"] > 0)
        check_tensors("output", config["output"], self.session.get_outputs(), batched=config["max_batch_size"] > 0)
        self.input_names = [one["name"] for one in config["input"]]
        self.output_names = [one["name"] for one in config["output"]]
        self.variable_inputs = [one["name"] for one in config["input"] if -1 in map(int, one["dims"])]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with the model's outputs, or with an error of its own."""
        return answer_batch(requests, self._read, self._run, self._write)

    def _read(self, request: Any) -> Tensors:
        return {name: tensor(request, name) for name in self.input_names}

    def _run(self, feeds: list[Tensors]) -> list[Tensors]:
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for position, feed in enumerate(feeds):
            groups.setdefault(tuple(feed[name].shape[1:] for name in self.input_names), []).append(position)
        results: list[Tensors] = [{} for _ in feeds]
        for positions in groups.values():
            batch = {name: joined([feeds[position][name] for position in positions]) for name in self.input_names}
            outputs = self._infer(batch)
            start = 0
            for position in positions:
                stop = start + len(feeds[position][self.input_names[0]])
                results[position] = {
                    name: values[start:stop] for name, values in zip(self.output_names, outputs, strict=True)
                }
                start = stop
        return results

    def _infer(self, batch: Tensors) -> list[npt.NDArray[Any]]:
        """Run a batch, in parts where its rows are long: activations, not weights, are what a batch costs in memory."""
        rows = len(batch[self.input_names[0]])
        step = rows
        if self.variable_inputs:
            longest = max(int(np.prod(batch[name].shape[1:])) for name in self.variable_inputs)
            step = max(1, ELEMENTS_A_RUN // max(1, longest))
        if step >= rows:
            outputs: list[npt.NDArray[Any]] = self.session.run(self.output_names, batch)
            return outputs
        parts = [
            self.session.run(self.output_names, {name: values[start : start + step] for name, values in batch.items()})
            for start in range(0, rows, step)
        ]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _write(self, result: Tensors) -> list[Any]:
        return [pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in result.items()]


def joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One batch from several requests' rows; a single request is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Make a model config's parameters into session options, as the native backend does.

    Raises:
        TritonModelException: a parameter or accelerator that this backend does not honour.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    settings = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}

    def take(name: str, default: int, largest: int) -> int:
        return whole_number(name, settings.pop(name, str(default)), largest)

    options.intra_op_num_threads = take("intra_op_thread_count", 0, 1024)
    options.inter_op_num_threads = take("inter_op_thread_count", 0, 1024)
    if take("execution_mode", 0, 1):
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = bool(take("enable_mem_arena", 1, 1))
    options.enable_mem_pattern = bool(take("enable_mem_pattern", 1, 1))
    for name in [one for one in settings if one.startswith("session.")]:
        options.add_session_config_entry(name, settings.pop(name))
    optimization = config.get("optimization", {})
    level = int(optimization.get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise pb_utils.TritonModelException(
            f"optimization.graph.level is {level}; it must be one of {sorted(GRAPH_LEVELS)}"
        )
    options.graph_optimization_level = GRAPH_LEVELS[level]
    accelerators = optimization.get("execution_accelerators", {})
    if settings or any(accelerators.values()):
        unknown = sorted(settings) + [name for name, value in accelerators.items() if value]
        raise pb_utils.TritonModelException(
            f"{config['name']}: the Python-based onnxruntime backend does not know {', '.join(unknown)}; "
            "remove it from config.pbtxt"
        )
    return options


def whole_number(name: str, value: str, largest: int) -> int:
    """A parameter's value as a number from 0 to `largest`.

    Raises:
        TritonModelException: it is anything else.
    """
    if not (value.isascii() and value.isdecimal() and int(value) <= largest):
        raise pb_utils.TritonModelException(
            f"parameter {name} is {value!r}; it must be a whole number from 0 to {largest}"
        )
    return int(value)


def check_tensors(role: str, configured: list[dict[str, Any]], actual: list[Any], *, batched: bool) -> None:
    """Hold the config's tensors against the model's, as the native backend does at load.

    Raises:
        TritonModelException: a name, dtype or dim differs, or an input is left out.
    """
    by_name = {one.name: one for one in actual}
    missing = set(by_name) - {one["name"] for one in configured} if role == "input" else set()
    if missing:
        raise pb_utils.TritonModelException(f"config.pbtxt lacks the model's {role} {', '.join(sorted(missing))}")
    for one in configured:
        if one["name"] not in by_name:
            raise pb_utils.TritonModelException(
                f"config.pbtxt names {role} {one['name']}; the model has {', '.join(sorted(by_name))}"
            )
        model = by_name[one["name"]]
        if DTYPES.get(model.type) != one["data_type"]:
            raise pb_utils.TritonModelException(
                f"{role} {one['name']} is {one['data_type']} in config.pbtxt and {model.type} in the model"
            )
        dims = [int(dim) for dim in one["dims"]]
        if batched and (not model.shape or isinstance(model.shape[0], int)):
            raise pb_utils.TritonModelException(
                f"{role} {one['name']} has no free batch dimension in the model (shape {model.shape}); "
                "set max_batch_size: 0 or export it anew"
            )
        expected = model.shape[1:] if batched else model.shape
        fits = len(dims) == len(expected) and all(
            not isinstance(size, int) or dim == size for dim, size in zip(dims, expected, strict=True)
        )
        if not fits:
            raise pb_utils.TritonModelException(
                f"{role} {one['name']} has dims {dims} in config.pbtxt and {expected} in the model"
            )
