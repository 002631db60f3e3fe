"""Python-based stand-in for Triton's native `onnxruntime` backend, so that one config.pbtxt serves on both.

It honours every parameter that the native backend knows on a CPU, and refuses the others.
Native parameters: https://github.com/triton-inference-server/onnxruntime_backend#other-optimization-options-with-onnx-runtime.
"""

import sys
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/`, copied beside this file when the backend is assembled

from steps.encoder_engine import Engine, OnnxRuntimeEngine
from steps.graph_model import GraphModel, parameters, refuse, whole_number

# As the native backend reads `optimization.graph.level`; 2 disables everything.
GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel(GraphModel):
    """One ONNX Runtime session an instance."""

    default_filename = "model.onnx"
    length_multiple = 1

    def open(self, config: dict[str, Any], path: Path) -> Engine:
        """Open a session."""
        return OnnxRuntimeEngine(path, session_options(config))


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Make a model config's parameters into session options, as the native backend does.

    Raises:
        TritonModelException: a parameter or accelerator that this backend does not honour.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    settings = parameters(config)

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
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise pb_utils.TritonModelException(
            f"optimization.graph.level is {level}; it must be one of {sorted(GRAPH_LEVELS)}"
        )
    options.graph_optimization_level = GRAPH_LEVELS[level]
    refuse(config, "onnxruntime", list(settings))
    return options
