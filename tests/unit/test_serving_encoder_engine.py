"""How ONNX Runtime is opened: sums of INT8 products are the same on every CPU."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.graph_file import open_session
from serving.steps import encoder_engine
from serving.steps.encoder_engine import EXACT_SUMS, OnnxRuntimeEngine, sums_overflow


@pytest.mark.parametrize(
    ("flags", "overflow"),
    [
        ("fpu sse2 ssse3 avx2 fma", True),
        ("fpu sse2 ssse3 avx2 avx512f avx512bw avx512vl", True),
        ("fpu sse2 ssse3 avx2 avx512f avx512bw avx512vl avx512_vnni", False),
        ("fpu sse2 ssse3 avx2 fma avx_vnni", False),
    ],
)
def test_without_vnni_sums_overflow(flags, overflow, tmp_path):
    information = tmp_path / "cpuinfo"
    information.write_text(f"processor\t: 0\nmodel name\t: a processor\nflags\t\t: {flags}\nbogomips\t: 1\n")
    assert sums_overflow(information) == overflow


def test_other_processors_have_no_such_kernels(tmp_path):
    information = tmp_path / "cpuinfo"
    assert not sums_overflow(information)  # a system that does not tell
    information.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert not sums_overflow(information)


@pytest.mark.parametrize("overflow", [True, False])
def test_every_session_is_told(overflow, monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_engine, "sums_overflow", lambda: overflow)
    opened = []
    session = onnxruntime.InferenceSession

    def opening(path, options, **settings):
        opened.append(options)
        return session(path, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("given", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["given"], ["same"])], "toy", tensors[:1], tensors[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    OnnxRuntimeEngine(path)
    OnnxRuntimeEngine(path, onnxruntime.SessionOptions())
    encoder_engine.open_engine("onnxruntime", path, threads=1)
    open_session(path)
    assert [_told(options) for options in opened] == [overflow] * 4


def _told(options: onnxruntime.SessionOptions) -> bool:
    try:
        return options.get_session_config_entry(EXACT_SUMS) == "1"
    except RuntimeError:  # there is no such entry
        return False
