"""`python -m export.tensorrt` and `--precision trt-…`: one line where there is no GPU, a table where there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from engine_fakes import CudaRuntime, put_cuda
from serving_helpers import ROOT

from export.__main__ import main as export_command
from export.errors import ExportError
from export.tensorrt import bench
from export.tensorrt.__main__ import main
from export.tensorrt.module import gpu_failures_in_one_line
from serving.engines.gpu_error import GpuError

SMI = """#!/bin/sh
case "$*" in
  *clocks*) echo '1980 MHz, 2619 MHz, 1980 MHz, 120.50 W, 40' ;;
  *) echo 'NVIDIA L4, 8.9, 550.54' ;;
esac
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def put_tensorrt(monkeypatch: pytest.MonkeyPatch, builder: Any = lambda _: None) -> None:
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None})
    module = SimpleNamespace(__version__="10.9.0", Builder=builder, Logger=logger)
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", ["trt-fp16", "trt-int8"])
def test_export_says_in_one_line_what_it_needs_and_writes_nothing(precision, tmp_path):
    arguments = ["--config", str(ROOT / "configs" / "ecommerce.yaml"), "--var", str(tmp_path / "var")]
    result = CliRunner().invoke(export_command, [*arguments, "--precision", precision])
    assert result.exit_code == 1
    assert result.output.startswith("Error: a TensorRT engine needs an NVIDIA GPU")
    assert "docs/tensorrt.md" in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "var").exists()


@pytest.mark.usefixtures("no_gpu")
def test_check_and_bench_say_the_same(tmp_path):
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(b"")
    for arguments in (["check"], ["bench", "--fp16", str(graph)]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1
        assert result.output.count("\n") == 1
        assert "this machine has no nvidia-smi" in result.output


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_tensorrt_is_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 1
    assert "TensorRT is needed and not installed" in result.output


@pytest.mark.usefixtures("gpu")
def test_bindings_are_missed_before_anything_is_built(monkeypatch):
    put_tensorrt(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 1
    assert "CUDA's Python bindings are needed" in result.output
    put_cuda(monkeypatch, CudaRuntime())
    result = CliRunner().invoke(main, ["check"])
    assert result.output == "NVIDIA L4 (compute capability 8.9), driver 550.54, TensorRT 10.9.0\n"


@pytest.mark.usefixtures("gpu")
def test_a_driver_older_than_the_bindings_or_tensorrt_is_seen_before_anything_is_built(monkeypatch, tmp_path):
    def null(_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    export = ["--config", str(ROOT / "configs" / "ecommerce.yaml"), "--var", str(tmp_path / "var")]
    faults = [
        (CudaRuntime({"cudaSetDevice": 35}), lambda _: None, "cudaSetDevice failed: status 35"),
        (CudaRuntime(), null, "TensorRT cannot start CUDA"),
    ]
    for runtime, builder, message in faults:
        put_cuda(monkeypatch, runtime)
        put_tensorrt(monkeypatch, builder)
        for command, arguments in ((main, ["check"]), (export_command, [*export, "--precision", "trt-fp16"])):
            result = CliRunner().invoke(command, arguments)
            assert result.exit_code == 1
            assert result.output.count("\n") == 1
            assert message in result.output


def test_what_fails_on_the_gpu_later_is_one_line_too():
    said = "The GPU cannot be used: cudaMalloc failed: out of memory"
    with pytest.raises(ExportError, match=said), gpu_failures_in_one_line():
        raise GpuError("cudaMalloc failed: out of memory")


@pytest.mark.usefixtures("gpu")
def test_figures_carry_the_machine_and_its_clocks(tmp_path):
    shapes = []

    class Runner:
        def run(self, ids, mask):
            shapes.append((ids.shape, ids.dtype, int(mask.sum())))
            return ids

    found = bench.measure({"torch FP16": Runner(), "TensorRT FP16": Runner()}, (16, 32), (1, 8), rounds=2)
    assert [(one.length, one.batch) for one in found] == [(16, 1), (16, 8), (32, 1), (32, 8)]
    assert {shape for shape, _, _ in shapes} == {(1, 16), (8, 16), (1, 32), (8, 32)}
    where = bench.machine("10.9.0")
    assert (where["gpu"], where["driver"], where["tensorrt"]) == ("NVIDIA L4", "550.54", "10.9.0")
    bench.write(tmp_path / "bench.json", where, found)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["measurements"][0]["clocks"]["clocks.sm"] == "1980 MHz"
    assert set(written["measurements"][0]["milliseconds"]) == {"torch FP16", "TensorRT FP16"}


def test_the_table_says_how_many_times_faster():
    one = bench.Measurement(8, 16, {"torch FP16": 3.0, "TensorRT FP16": 0.75}, {"clocks.sm": "1980 MHz"})
    lines = bench.markdown({"gpu": "NVIDIA L4"}, [one]).splitlines()
    assert lines[0] == "gpu NVIDIA L4"
    assert lines[2] == "| length | batch | torch FP16 | TensorRT FP16 (× torch FP16) | SM clock |"
    assert lines[4] == "| 16 | 8 | 3.000 | 0.750 (4.00) | 1980 MHz |"
