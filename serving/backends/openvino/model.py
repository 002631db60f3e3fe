"""Python-based stand-in for Triton's native `openvino` backend, so that one config.pbtxt serves on both.

It reads `model.xml`, or the ONNX file that `default_model_filename` names, honours the parameters below as the native
backend does, and refuses the others: `ENABLE_BATCH_PADDING`, `SKIP_OV_DYNAMIC_BATCHSIZE` and `RESHAPE_IO_LAYERS` are
for graphs of fixed shape, which `max_batch_size` above 0 has no use for here.
Native parameters: https://github.com/triton-inference-server/openvino_backend#parameters.
"""

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/`, copied beside this file when the backend is assembled

from steps.encoder_engine import Engine, OpenVinoEngine
from steps.graph_model import GraphModel, parameters, refuse, whole_number

WORDS = {
    "PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT"),
    "HINT_BF16": ("YES",),
    "NUM_STREAMS": ("AUTO", "NUMA"),  # or a number
}


class TritonPythonModel(GraphModel):
    """One compiled graph an instance."""

    default_filename = "model.xml"

    def open(self, config: dict[str, Any], path: Path) -> Engine:
        """Compile the graph."""
        try:
            return OpenVinoEngine(path, properties(config))
        except ImportError as error:
            raise pb_utils.TritonModelException(f"{config['name']}: {error}") from None


def properties(config: dict[str, Any]) -> dict[str, Any]:
    """Make a model config's parameters into OpenVINO properties, as the native backend does.

    Raises:
        TritonModelException: a parameter or accelerator that this backend does not honour.
    """
    settings = parameters(config)
    found: dict[str, Any] = {}
    for name in ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS"):
        if name in settings:
            found[name] = whole_number(name, settings.pop(name), 1024)
    for name, words in WORDS.items():
        if name not in settings:
            continue
        value = settings.pop(name).upper()
        if name == "NUM_STREAMS" and value.isdecimal():
            found[name] = whole_number(name, value, 1024)
        elif value not in words:
            raise pb_utils.TritonModelException(f"parameter {name} is {value!r}; it must be {' or '.join(words)}")
        elif name == "HINT_BF16":
            found["INFERENCE_PRECISION_HINT"] = "bf16"
        else:
            found[name] = value
    refuse(config, "openvino", list(settings))
    return found
