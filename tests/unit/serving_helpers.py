"""What the serving room's tests share: a stand-in for Triton's own Python module, toy catalogues and toy releases."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from serving.embedded import Installation
from serving.files import sha256_of
from serving.manifest import Manifest, Step, files_below
from serving.releases import Release
from serving.steps.catalogue import Catalogue, ScoreWeights, StringTable

ROOT = Path(__file__).resolve().parents[2]
STEPS_CODE = ROOT / "serving" / "steps"


class Tensor:
    """A named array, as Triton hands it over."""

    def __init__(self, name: str, values: Any) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._values


class Request:
    """A request's input tensors by name."""

    def __init__(self, **tensors: Any) -> None:
        self.tensors = tensors


class TritonError:
    """An error of one request, with its code."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = "INTERNAL", "INVALID_ARG", "UNAVAILABLE"

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self.message, self.code = message, code


class InferenceResponse:
    """The answer to one request: tensors or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class TritonModelException(Exception):  # noqa: N818 - Triton's own name
    """What a model raises at load to be refused."""


def tritons_utilities() -> ModuleType:
    """Triton's own `triton_python_backend_utils`, without what the stub adds to it."""
    path = Installation.find().python_backend / "triton_python_backend_utils.py"
    spec = importlib.util.spec_from_file_location("tritons_utilities", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_triton() -> ModuleType:
    """A module with the doors of `triton_python_backend_utils` that the steps use; what was logged is in `logged`."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError = Tensor, TritonError
    module.InferenceResponse, module.TritonModelException = InferenceResponse, TritonModelException
    module.logged, module.counted = [], []
    own = tritons_utilities()
    for name in ("serialize_byte_tensor", "deserialize_bytes_tensor", "numpy_to_triton_type"):
        setattr(module, name, getattr(own, name))

    class Logger:
        log_error = staticmethod(module.logged.append)

    class Metric:
        increment = staticmethod(module.counted.append)

    class MetricFamily:
        COUNTER = "counter"

        def __init__(self, **described: Any) -> None:
            self.described = described

        def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802 - Triton's own name
            assert labels
            return Metric()

    def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
        return Tensor(name, request.tensors[name]) if name in request.tensors else None

    module.Logger, module.MetricFamily = Logger, MetricFamily
    module.get_input_tensor_by_name = get_input_tensor_by_name
    return module  # type: ignore[no-any-return]


def install_triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the stand-in where the steps import it from, and forget modules that hold an older one."""
    module = fake_triton()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [one for one in sys.modules if one in {"steps", "serving.steps.batching"} or one.startswith("steps.")]:
        monkeypatch.delitem(sys.modules, name)
    return module


def load_model_file(source: Path, folder: Path) -> ModuleType:
    """Import a `model.py` as the server does: copied into a folder, `steps/` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, folder / "model.py")
    shutil.copytree(STEPS_CODE, folder / "steps", ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location(f"model_{folder.name}", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def catalogue_of(
    vectors: Any, label_index: Any, prior: Any, weights: ScoreWeights, *, labels: int, release: str = "1"
) -> Catalogue:
    """A catalogue in memory whose items are called `item-0`, `item-1` …"""
    names = [f"item-{row}" for row in range(len(vectors))]
    return Catalogue(
        release=release,
        item_vectors=np.ascontiguousarray(vectors, dtype=np.float32),
        label_index=np.asarray(label_index, dtype=np.int32),
        prior=np.asarray(prior, dtype=np.float32),
        item_ids=StringTable.of(names),
        titles=StringTable.of([f"title of {name}" for name in names]),
        labels=tuple(f"label-{row}" for row in range(labels)),
        score_weights=weights,
    )


STEP_CONFIG = 'name: "{model}"\nbackend: "python"\nmax_batch_size: 32\n'


def build_release(
    folder: Path, number: int, steps: Mapping[str, tuple[int, str]], *, domain: str = "shop", shared: str | None = None
) -> Release:
    """Write a small but complete release: `steps` holds each step's version and content.

    `shared` names another domain whose encoder this one uses.
    """
    root = folder / str(number)
    pins = []
    manifest_steps = {}
    for step, (version, content) in steps.items():
        model = f"{shared if shared and step == 'encoder' else domain}_{step}"
        versioned = root / "models" / model / str(version)
        (versioned / "steps").mkdir(parents=True)
        (versioned / "model.bin").write_text(f"{content} of {step}")
        (versioned / "steps" / "code.py").write_text(f"content = {content!r}")
        (root / "models" / model / "config.pbtxt").write_text(STEP_CONFIG.format(model=model))
        if step == "encoder":
            (root / "models" / model / "warmup").mkdir()
            (root / "models" / model / "warmup" / "ones_16").write_bytes(b"\1" * 16)
        pins.append(f'{{ model_name: "{model}" model_version: {version} }}')
        manifest_steps[step] = Step(model=model, version=version, digest=f"{step}-{content}")
    ensemble = root / "models" / domain
    (ensemble / str(number)).mkdir(parents=True)
    (ensemble / str(number) / "release").write_text(f"{number}\n")
    (ensemble / "config.pbtxt").write_text(
        f'name: "{domain}"\nplatform: "ensemble"\nmax_batch_size: 32\n'
        f"ensemble_scheduling {{ step [ {', '.join(pins)} ] }}\n"
    )
    (root / "instructions.jsonl").write_text('{"text": "a blue shirt", "history": []}\n')
    manifest_of(root, domain, number, manifest_steps).write(root)
    return Release(root)


def manifest_of(root: Path, domain: str, number: int, steps: Mapping[str, Step]) -> Manifest:
    """A manifest over what lies in a release folder."""
    return Manifest(
        domain=domain,
        release=number,
        created="2026-01-01T00:00:00+00:00",
        run_id="run",
        run_fingerprint="run",
        export_fingerprint=f"export {number}",
        precision="fp32",
        items=1,
        labels=1,
        metrics={},
        verification={},
        steps=dict(steps),
        files={name: sha256_of(root / name) for name in sorted(files_below(root))},
    )


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
