"""Engines where they are served: fingerprints are compared, and the variant is live where the engine belongs."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from engine_fakes import BUILT, CudaRuntime, put_cuda
from engine_releases import engine_release
from serving_helpers import build_release

from serving.engine_variants import engine_warning
from serving.engines.cuda import Cuda
from serving.engines.fingerprint import FINGERPRINT_NAME, Fingerprint, GpuError, gpu_in_use


def test_the_gpu_is_asked(gpu):
    gpu("NVIDIA L4, 8.9, 550.54")
    assert Fingerprint.here("10.9.0") == BUILT


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (None, 0, "no nvidia-smi"),
        ("No devices were found", 6, "finds no GPU 0: No devices were found"),
        ("NVIDIA L4, 8.9", 0, "finds no GPU"),
        ("", 9, "it says nothing"),
    ],
)
def test_no_gpu_is_said_in_a_line(answer, status, message, gpu):
    gpu(answer, status)
    with pytest.raises(GpuError, match=message) as caught:
        gpu_in_use()
    assert "\n" not in str(caught.value)


def test_nvidia_smi_is_asked_for_the_gpu_that_cuda_means(gpu, monkeypatch, tmp_path):
    """Both number GPUs, each in its own order, and CUDA leaves out what it may not see."""
    runtime = CudaRuntime()
    put_cuda(monkeypatch, runtime)
    gpu("NVIDIA L4, 8.9, 550.54")
    (tmp_path / "bin" / "nvidia-smi").write_text(
        '#!/bin/sh\ncase "$*" in *--id=0000:65:00.0\\ *) echo "NVIDIA L4, 8.9, 550.54" ;; *) exit 6 ;; esac\n'
    )
    assert Fingerprint.here("10.9.0", 1) == BUILT
    assert runtime.calls[0][::2] == ("cudaDeviceGetPCIBusId", 1)


def test_a_driver_older_than_cuda_is_said(gpu, monkeypatch):
    gpu("NVIDIA L4, 8.9, 550.54")
    put_cuda(monkeypatch, CudaRuntime({"cudaDeviceGetPCIBusId": 35}))
    with pytest.raises(GpuError, match="status 35: update the driver"):
        gpu_in_use()

    def missing(*_: Any) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    put_cuda(monkeypatch, SimpleNamespace(cudaSetDevice=missing))
    with pytest.raises(GpuError, match="cudaSetDevice failed: Failed to dlopen"):
        Cuda()


def test_all_that_was_taken_of_a_gpu_is_given_back(monkeypatch):
    runtime = CudaRuntime({"cudaStreamSynchronize": 700})  # an illegal access: whatever is asked fails from now on
    put_cuda(monkeypatch, runtime)
    device = Cuda()
    device.device_buffer(8)
    device.close()
    assert [call[0] for call in runtime.calls[-3:]] == ["cudaStreamSynchronize", "cudaFree", "cudaStreamDestroy"]


def test_fingerprint_is_kept_and_damage_is_seen(tmp_path):
    path = tmp_path / FINGERPRINT_NAME
    BUILT.write(path)
    assert Fingerprint.read(path) == BUILT
    for content in ("[]", '{"gpu": "NVIDIA L4"}', path.read_text().replace('"8.9"', "8.9"), "not JSON"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"."):
            Fingerprint.read(path)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Fingerprint)])
def test_every_part_of_a_fingerprint_counts(field):
    assert BUILT.difference(BUILT) is None
    other = dataclasses.replace(BUILT, **{field: "another"})
    assert f"{field} {getattr(BUILT, field)}, here another" in BUILT.difference(other)


def test_deploy_says_why_an_engine_does_not_belong(gpu, monkeypatch, tmp_path):
    release = engine_release(tmp_path / "releases")
    assert release.manifest.engine == BUILT
    assert "cannot run here: this machine has no nvidia-smi" in engine_warning(release)
    gpu("NVIDIA L4, 8.9, 550.54")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT cannot be loaded" in engine_warning(release)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0"))
    assert engine_warning(release) is None
    gpu("NVIDIA L4, 8.9, 570.86")
    assert "driver 550.54, here 570.86; the ONNX graph answers instead" in engine_warning(release)
    plain = build_release(tmp_path / "plain", 1, {"encoder": (1, "a")})
    assert engine_warning(plain) is None


def test_cuda_without_bindings_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(GpuError, match=r"requirements/tensorrt\.txt"):
        Cuda()
