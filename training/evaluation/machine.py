"""The machine that measured: numbers repeat themselves on an equal one."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    "bm25s",
    "matplotlib",
    "numpy",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


def machine_fingerprint() -> dict[str, Any]:
    """Processor, cores, threads, Python and library versions; no name of a host or a person."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """The processor's model as Linux tells it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
