"""What an engine is tied to: the GPU, its driver and TensorRT. Elsewhere it does not load, or is slower than it was."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .cuda import pci_bus_id
from .gpu_error import GpuError

__all__ = ["FINGERPRINT_NAME", "Fingerprint", "GpuError", "gpu_in_use", "query_gpu"]

FINGERPRINT_NAME = "engine.json"
"""Beside the engine: its fingerprint, for the backend, which does not see the release's manifest."""


@dataclass(frozen=True)
class Fingerprint:
    """Where an engine was built, or where it is to run.

    Attributes:
        gpu: The GPU's name.
        compute_capability: Of the GPU, as 9.0.
        driver: Version of the driver.
        tensorrt: Version of TensorRT.
    """

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str

    @classmethod
    def here(cls, tensorrt: str, device: int = 0) -> Fingerprint:
        """The fingerprint of an engine built on this machine now.

        Args:
            tensorrt: Version of TensorRT.
            device: Number of the GPU, as CUDA counts.

        Raises:
            GpuError: There is none.
        """
        return cls(**gpu_in_use(device), tensorrt=tensorrt)

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Read what `write` wrote.

        Raises:
            ValueError: It is not a fingerprint.
        """
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(cls)}
        if (
            not isinstance(values, dict)
            or set(values) != names
            or not all(isinstance(one, str) for one in values.values())
        ):
            raise ValueError(f"{path} is not the fingerprint of an engine; export the release again")
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def difference(self, here: Fingerprint) -> str | None:
        """What differs where the engine is to run, in words; None if it may run there."""
        built, now = asdict(self), asdict(here)
        differing = [f"{name} {built[name]}, here {now[name]}" for name in built if built[name] != now[name]]
        return "the engine was built with " + "; ".join(differing) if differing else None


def gpu_in_use(device: int = 0) -> dict[str, str]:
    """Name, compute capability and driver of a GPU.

    Raises:
        GpuError: There is none, or its driver does not answer.
    """
    name, capability, driver = query_gpu(("name", "compute_cap", "driver_version"), device)
    return {"gpu": name, "compute_capability": capability, "driver": driver}


def query_gpu(properties: tuple[str, ...], device: int = 0) -> list[str]:
    """Ask `nvidia-smi`, which comes with every driver and container runtime.

    Args:
        properties: As its `--query-gpu` names them.
        device: Number of the GPU, as CUDA counts; without CUDA's bindings, as `nvidia-smi` does.

    Raises:
        GpuError: There is no GPU, no driver or one that is too old for CUDA, or no such property.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise GpuError("this machine has no nvidia-smi, so no NVIDIA driver")
    command = [
        program,
        f"--id={pci_bus_id(device) or device}",
        f"--query-gpu={','.join(properties)}",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuError(f"nvidia-smi does not answer: {error}") from None
    lines = (answer.stdout or answer.stderr).strip().splitlines() or ["it says nothing"]
    values = next(csv.reader(lines[:1], skipinitialspace=True))
    if answer.returncode != 0 or len(values) != len(properties):
        raise GpuError(f"nvidia-smi finds no GPU {device}: {lines[0]}")
    return values
