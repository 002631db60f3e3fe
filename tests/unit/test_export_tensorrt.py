"""The engine builder, for real: TensorRT for RTX has TensorRT's interface and builds without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from tiny_encoders import words_model

from export.agreement import encode
from export.errors import ExportError, VerificationError
from export.fp16 import export_fp16_encoder, largest_batches
from export.graph_file import load_graph, open_session, save_graph
from export.int8 import decide, emit
from export.onnx_graph import export_encoder
from export.report import FP16_BUDGET
from export.task import TaskComparison
from export.tensorrt.engine import refuse_slower, verify_engine
from export.tensorrt.inspection import check_engine, check_layers
from export.tensorrt.module import load_tensorrt
from export.tensorrt.network import build_engine
from export.tensorrt.profiles import Profile, captured_batches, make_profiles
from export.tensorrt.quantized import constant_products, emit_symmetric
from export.tokens import calibration_batches, pad
from serving.engines.gpu_error import GpuError

TEXTS = [" ".join(f"w{(start * step) % 97 + 3}" for step in range(1, 2 + start % 9)) for start in range(1, 60)]
PROFILES = (Profile((1, 1), (4, 16)),)
# Its timing cache does nothing, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Any:
    """One model's FP32 and FP16 graphs, and both INT8 forms of one calibration."""
    folder = tmp_path_factory.mktemp("tensorrt")
    model = words_model()
    paths = SimpleNamespace(
        **{name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "unsigned", "symmetric")}, model=model
    )
    export_encoder(model, paths.fp32)
    export_fp16_encoder(model, paths.fp16)
    exact = load_graph(paths.fp32)
    paths.quantization = decide(exact, calibration_batches(model, TEXTS))
    emit(exact, paths.quantization, paths.unsigned)
    emit_symmetric(exact, load_graph(paths.fp16), paths.quantization, paths.symmetric)
    return paths


class TensorRT10:
    """TensorRT 10 as the builder sees it: refuses a network that is not asked to be strongly typed."""

    def __init__(self) -> None:
        self.flags: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def Builder(self, log: Any) -> Any:  # noqa: N802 - TensorRT's own name
        outer, real = self, tensorrt_rtx.Builder(log)

        class Builder:
            def create_network(self, flags: int = 0) -> Any:
                outer.flags.append(flags)
                return real.create_network(flags)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        return Builder()


def test_fp16_builds_strongly_typed(graphs):
    trt = TensorRT10()
    built = build_engine(trt, graphs.fp16, "fp16", PROFILES)
    assert trt.flags == [1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]
    assert len(built.plan) > 10_000
    assert len(built.products) == 12
    assert isinstance(built.timing_cache, bytes)


def test_a_builder_that_keeps_no_timings_builds_all_the_same(graphs):
    class WithoutTimings(TensorRT10):
        def Builder(self, log: Any) -> Any:  # noqa: N802 - TensorRT's own name
            real = super().Builder(log)

            class Config:
                create_timing_cache = get_timing_cache = staticmethod(lambda *_: None)

                def __init__(self) -> None:
                    vars(self)["real"] = real.create_builder_config()

                def __getattr__(self, name: str) -> Any:
                    return getattr(self.real, name)

                def __setattr__(self, name: str, value: Any) -> None:
                    setattr(self.real, name, value)

            class Builder:
                create_builder_config = staticmethod(Config)

                def build_serialized_network(self, network: Any, config: Config) -> Any:
                    return real.build_serialized_network(network, config.real)

                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)

            return Builder()

    built = build_engine(WithoutTimings(), graphs.fp16, "fp16", PROFILES)
    assert len(built.plan) > 10_000
    assert built.timing_cache == b""


def test_a_tensorrt_that_cannot_start_cuda_is_said(graphs):
    def null(_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    class Broken(TensorRT10):
        Builder = staticmethod(null)

    with pytest.raises(GpuError, match="TensorRT cannot start CUDA"):
        build_engine(Broken(), graphs.fp16, "fp16", PROFILES)


def test_int8_builds_from_the_symmetric_form(graphs):
    built = build_engine(tensorrt_rtx, graphs.symmetric, "int8", PROFILES)
    assert len(built.plan) > 10_000
    assert len(built.products) == 14  # 12, and the exact channels of the two that narrow


def test_symmetric_form_is_close_to_torch_and_holds_no_unsigned_code(graphs):
    graph = load_graph(graphs.symmetric)
    types = {tensor.name: tensor for tensor in graph.graph.initializer}
    quantized = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == len(graphs.quantization.inputs) == 8
    for node in graph.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert types[node.input[1]].data_type == TensorProto.FLOAT16
            assert types[node.input[2]].data_type == TensorProto.INT8
            assert not numpy_helper.to_array(types[node.input[2]]).any()
    half, signed, unsigned = (open_session(path) for path in (graphs.fp16, graphs.symmetric, graphs.unsigned))
    batch = pad([[5, 6, 7, 8], [9, 10]], 8)
    exact = encode(half, batch)
    errors = [float(np.abs(encode(session, batch) - exact).max()) for session in (signed, unsigned)]
    assert 0 < errors[0] < 0.1
    assert errors[0] < 4 * errors[1]  # up to one bit less where a tensor is one-sided, and no more


def test_graphs_of_two_models_do_not_mix(graphs, tmp_path):
    other = load_graph(graphs.fp16)
    first = constant_products(other)[0].input[1]
    target = next(tensor for tensor in other.graph.initializer if tensor.name == first)
    target.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(target) * np.float16(2), first))
    with pytest.raises(ExportError, match="export both graphs from one model"):
        emit_symmetric(load_graph(graphs.fp32), other, graphs.quantization, tmp_path / "mixed.onnx")
    assert not (tmp_path / "mixed.onnx").exists()


@pytest.mark.parametrize(
    ("graph", "precision", "message"),
    [
        ("unsigned", "int8", "quantises to U8, which TensorRT does not take"),
        ("fp32", "fp16", "takes FLOAT and FLOAT, not HALF and HALF"),
        ("fp16", "int8", "nothing in it is quantised to INT8"),
        ("symmetric", "fp16", "it is quantised"),
    ],
)
def test_what_would_be_another_precision_is_refused(graph, precision, message, graphs):
    with pytest.raises(ExportError, match=message) as caught:
        build_engine(tensorrt_rtx, getattr(graphs, graph), precision, PROFILES)
    assert "\n" not in caught.value.message
    assert f"{graph}.onnx" in caught.value.message


def test_one_product_left_in_fp32_is_refused(graphs, tmp_path):
    """A graph that is half throughout but for one product, as a converter's block list leaves it."""
    graph = load_graph(graphs.fp16)
    node = constant_products(graph)[5]
    position = list(graph.graph.node).index(node)
    target = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[1])
    target.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(target).astype(np.float32), target.name))
    before = onnx.helper.make_node("Cast", [node.input[0]], ["wide"], name="widen", to=TensorProto.FLOAT)
    after = onnx.helper.make_node("Cast", ["wide product"], [node.output[0]], name="narrow", to=TensorProto.FLOAT16)
    node.input[0], node.output[0] = "wide", "wide product"
    graph.graph.node.insert(position + 1, after)
    graph.graph.node.insert(position, before)
    save_graph(graph, tmp_path / "mixed.onnx")
    with pytest.raises(ExportError, match=f"{node.name} takes FLOAT and FLOAT"):
        build_engine(tensorrt_rtx, tmp_path / "mixed.onnx", "fp16", PROFILES)


def test_an_operator_that_it_does_not_take_is_named(graphs, tmp_path):
    for operator, message in {"DynamicQuantizeLinear": "dynamic quantisation", "NonZeroth": "does not take"}.items():
        graph = load_graph(graphs.fp16)
        node = constant_products(graph)[0]
        node.op_type = operator
        (tmp_path / "odd.onnx").write_bytes(graph.SerializeToString())
        with pytest.raises(ExportError, match=message) as caught:
            build_engine(tensorrt_rtx, tmp_path / "odd.onnx", "fp16", PROFILES)
        assert node.name in caught.value.message


def test_a_profile_that_makes_no_sense_is_refused(graphs):
    with pytest.raises((ExportError, ValueError)):
        build_engine(tensorrt_rtx, graphs.fp16, "fp16", [Profile((8, 16), (1, 4))])


@given(st.sets(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 200), st.integers(1, 200), st.data())
def test_every_shape_has_one_profile(buckets, max_batch_size, rows, data):
    profiles = make_profiles(sorted(buckets), max_batch_size)
    rows = min(rows, max_batch_size)
    length = data.draw(st.integers(1, max(buckets)))
    assert sum(profile.takes(rows, length) for profile in profiles) == 1
    assert not any(profile.takes(max_batch_size + 1, length) for profile in profiles)
    assert {profile.largest[1] for profile in profiles} == buckets  # tuned for what the server pads to
    assert captured_batches(max_batch_size)[-1] == max_batch_size
    assert captured_batches(max_batch_size)[0] == 1


def test_no_profile_of_nothing():
    for buckets, batch in (((), 8), ((16,), 0), ((0, 16), 8)):
        with pytest.raises(ExportError, match="at least one length bucket"):
            make_profiles(buckets, batch)


def layer(name: str, **kinds: str) -> dict[str, Any]:
    return {"Name": name, "LayerType": "gemm", "Inputs": [{"Name": "x", **kinds}], "Outputs": []}


# As TensorRT 10 and 11 describe the type of a tensor.
HALF = ({"Format/Datatype": "Row major linear FP16 format"}, {"DataType": "Half", "Format": "kLINEAR"})
FLOAT = ({"Format/Datatype": "Row major linear FP32"}, {"DataType": "Float", "Format": "kLINEAR"})


@pytest.mark.parametrize("version", [0, 1])
def test_a_silent_fp32_engine_is_refused(version):
    half, single = layer("a/MatMul", **HALF[version]), layer("b/MatMul", **FLOAT[version])
    norm = layer("LayerNorm", **FLOAT[version])
    assert check_layers([half, norm], "fp16", ["a/MatMul"]) == {"int8": 0, "fp16": 1, "other": 1}
    with pytest.raises(ExportError, match="runs b/MatMul in FP32"):
        check_layers([half, single], "fp16", ["a/MatMul", "b/MatMul"])
    with pytest.raises(ExportError, match="None of the engine's 1 layers shows FP16"):
        check_layers([norm], "fp16", ["a/MatMul"])
    with pytest.raises(ExportError, match="shows INT8"):
        check_layers([half], "int8", ["a/MatMul"])
    tactic = layer("c/MatMul") | {"TacticName": "sm80_xmma_gemm_i8f16_i8i32_f32_tn"}
    assert check_layers([tactic, half], "int8", ["c/MatMul"])["int8"] == 1


class Engine:
    """An engine as the inspector sees it."""

    num_optimization_profiles = 1

    def __init__(self, output: Any = tensorrt_rtx.float32, largest: tuple[int, int] = (4, 16)) -> None:
        self.types = {"input_ids": tensorrt_rtx.int64, "attention_mask": tensorrt_rtx.int64}
        self.types["instruction_vector"] = output
        self.largest, self.num_io_tensors = largest, 3

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, int]]:
        return [(1, 1), self.largest, self.largest]

    def create_execution_context(self) -> Any:
        return SimpleNamespace(set_input_shape=lambda *_: True)

    def create_engine_inspector(self) -> Any:
        told = json.dumps({"Layers": [layer("a/MatMul", **HALF[0])]})
        return SimpleNamespace(get_engine_information=lambda _: told)


def test_types_and_profiles_of_the_engine_are_asserted():
    assert check_engine(tensorrt_rtx, Engine(), "fp16", PROFILES, ["a/MatMul"])["fp16"] == 1
    with pytest.raises(ExportError, match="were expected"):
        check_engine(tensorrt_rtx, Engine(output=tensorrt_rtx.float16), "fp16", PROFILES, [])
    with pytest.raises(ExportError, match="Profile 0"):
        check_engine(tensorrt_rtx, Engine(largest=(8, 16)), "fp16", PROFILES, [])
    with pytest.raises(ExportError, match="2 were asked for"):
        check_engine(tensorrt_rtx, Engine(), "fp16", PROFILES * 2, [])


class GraphRunner:
    """Runs a graph in the place of an engine, and spoils what it answers."""

    def __init__(self, path: Path, spoil: Any = lambda ids, vectors: vectors) -> None:
        self.session, self.spoil, self.shapes = open_session(path), spoil, set()

    def run(self, ids: Any, mask: Any) -> Any:
        self.shapes.add(ids.shape)
        return self.spoil(ids, encode(self.session, (ids, mask)))


def held(graphs: Any, runner: Any, buckets: Any = (8, 16), **given: Any) -> Any:
    profiles = make_profiles(buckets, 12)
    return verify_engine(runner, "model.plan", graphs.model, TEXTS, profiles, FP16_BUDGET, **given)


def test_an_engine_is_held_against_torch_in_every_profile(graphs):
    runner = GraphRunner(graphs.fp16)
    report = held(graphs, runner)
    assert report.passed
    assert set(report.shapes) == {(batch, length) for batch in (1, 2, 4, 8, 11, 12) for length in (8, 16)}
    assert set(report.shapes) <= runner.shapes
    assert all(any(profile.takes(*shape) for shape in runner.shapes) for profile in make_profiles((8, 16), 12))
    assert {length for _, length in runner.shapes} == {8, 16}  # as the server pads
    assert max(batch for batch, _ in runner.shapes) == 12


def test_texts_are_cut_to_the_longest_bucket_as_the_server_cuts_them(graphs):
    runner = GraphRunner(graphs.fp16)
    assert held(graphs, runner, (6,)).passed
    assert {length for _, length in runner.shapes} == {6}


@pytest.mark.parametrize("size", [1, 2, 4, 8, 11, 12])
def test_an_engine_that_is_wrong_at_one_batch_size_is_refused(size, graphs):
    with pytest.raises(VerificationError) as caught:
        held(graphs, GraphRunner(graphs.fp16, lambda ids, vectors: -vectors if len(ids) == size else vectors))
    assert "minimum cosine over shapes" in {check.name for check in caught.value.report.failed}


def test_the_ranking_and_the_task_are_measured_on_the_engine_itself(graphs):
    class Task:
        def compare(self, torch: Any, graph: Any) -> list[TaskComparison]:
            assert [values.shape[0] for values in (*torch, *graph)] == [len(TEXTS)] * 4
            return [
                TaskComparison(name="NDCG@10", instructions=9, torch=0.5, graph=0.4, difference=-0.1, low=0, high=0)
            ]

    vectors = np.random.default_rng(0).normal(size=(40, graphs.model.head.in_features)).astype(np.float32)
    with pytest.raises(VerificationError) as caught:
        held(graphs, GraphRunner(graphs.fp16), item_vectors=vectors, task=Task())
    assert [check.name for check in caught.value.report.failed] == ["loss of NDCG@10"]
    assert "overlap of the best 10 items" in {check.name for check in caught.value.report.checks}
    assert caught.value.report.task[0].graph == 0.4


def test_an_engine_that_overflows_on_the_largest_inputs_is_refused(graphs):
    [*_, (extreme, _)] = largest_batches(graphs.model, TEXTS, 16)

    def overflow(ids: Any, vectors: Any) -> Any:
        return vectors * np.inf if np.array_equal(ids, extreme) else vectors

    with pytest.raises(VerificationError) as caught:
        held(graphs, GraphRunner(graphs.fp16, overflow))
    assert [check.name for check in caught.value.report.failed] == ["values that are not finite, largest inputs"]


def test_int8_that_is_slower_is_not_shipped(graphs):
    now = [0.0]

    class Timed(GraphRunner):
        def __init__(self, path: Path, seconds: float) -> None:
            super().__init__(path)
            self.seconds = seconds

        def run(self, ids: Any, mask: Any) -> Any:
            now[0] += self.seconds
            return super().run(ids, mask)

    slow, quick = Timed(graphs.fp16, 0.002), Timed(graphs.fp16, 0.001)
    refuse_slower(quick, slow, (16,), 4, clock=lambda: now[0])
    with pytest.raises(ExportError, match=r"INT8 engine takes 2\.000 ms .* FP16 engine 1\.000 ms"):
        refuse_slower(slow, quick, (16,), 4, clock=lambda: now[0])


def test_missing_tensorrt_says_how_to_get_it():
    with pytest.raises(ExportError, match=r"requirements/tensorrt\.txt") as caught:
        load_tensorrt("tensorrt_that_is_not_installed")
    assert "\n" not in caught.value.message
    assert load_tensorrt("tensorrt_rtx") is tensorrt_rtx


def test_too_old_a_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(ExportError, match=r"TensorRT 8\.6\.1 is too old"):
        load_tensorrt()
