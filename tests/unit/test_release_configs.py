"""What export makes of the committed configs: names, dims, pinned versions, warm-up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from serving_helpers import ROOT
from test_model_repository import CONTRACT_INPUTS, CONTRACT_OUTPUTS, check_edges, described

from export.errors import ExportError
from export.model_config import FUSED, LENGTH_MULTIPLES, STEPS, WARMUP_FOLDER, ConfigWriter, step_name
from export.release_builder import add_engine
from export.settings import SHORTEST_BUCKET, ExportSettings, ServingSettings, read_section
from export.tensorrt.engine import EngineFile
from export.tensorrt.profiles import make_profiles
from serving.engines.fingerprint import FINGERPRINT_NAME, Fingerprint
from serving.live_repository import parse_config

SETTINGS = ServingSettings(max_batch_size=48, encoder_instances=2, encoder_threads=3)
BUCKETS = (16, 40)
VERSIONS = {"tokenizer": 1, "encoder": 4, "head": 9, "topk": 12}


@pytest.fixture
def writer() -> ConfigWriter:
    return ConfigWriter("news", SETTINGS, BUCKETS, hidden_size=96, labels=11)


def parsed(writer: ConfigWriter) -> dict[str, Any]:
    return {step_name("news", step): parse_config(writer.step(step)) for step in STEPS}


def test_steps_are_named_after_the_domain_and_sized_after_the_model(writer):
    configs = parsed(writer)
    assert list(configs) == ["news_tokenizer", "news_encoder", "news_head", "news_topk"]
    for name, config in configs.items():
        assert config.name == name
        assert config.max_batch_size == 48
    assert described(configs["news_encoder"].output)["instruction_vector"] == ("FP32", (96,))
    assert described(configs["news_head"].input)["instruction_vector"] == ("FP32", (96,))
    assert described(configs["news_head"].output)["logits"] == ("FP32", (11,))
    topk = described(configs["news_topk"].input)
    assert (topk["instruction_vector"], topk["logits"]) == (("FP32", (96,)), ("FP32", (11,)))


def test_the_ensemble_pins_every_step_and_keeps_the_contract(writer):
    ensemble = parse_config(writer.ensemble(VERSIONS))
    assert (ensemble.name, ensemble.platform, ensemble.max_batch_size) == ("news", "ensemble", 48)
    pins = {entry.model_name: entry.model_version for entry in ensemble.ensemble_scheduling.step}
    assert pins == {step_name("news", step): version for step, version in VERSIONS.items()}
    assert (described(ensemble.input), described(ensemble.output)) == (CONTRACT_INPUTS, CONTRACT_OUTPUTS)
    check_edges(ensemble, parsed(writer))


@pytest.mark.parametrize("missing", STEPS)
def test_a_step_without_a_version_is_not_left_unpinned(writer, missing):
    with pytest.raises(KeyError, match=missing):
        writer.ensemble({step: version for step, version in VERSIONS.items() if step != missing})


def test_settings_reach_the_configs(writer):
    configs = parsed(writer)
    assert configs["news_tokenizer"].parameters["length_buckets"].string_value == "16,40"
    encoder = configs["news_encoder"]
    assert encoder.instance_group[0].count == 2
    assert encoder.parameters["intra_op_thread_count"].string_value == "3"
    assert configs["news_head"].instance_group[0].count == 1


def test_warm_up_covers_every_bucket_at_batch_one_and_maximum(writer, tmp_path):
    writer.write_warmup_data("encoder", tmp_path)
    encoder = parse_config(writer.step("encoder"))
    inputs = described(encoder.input)
    covered = set()
    for sample in encoder.model_warmup:
        assert set(sample.inputs) == set(inputs)
        lengths = {tuple(entry.dims) for entry in sample.inputs.values()}
        [(length,)] = lengths
        covered.add((length, sample.batch_size))
        for entry in sample.inputs.values():
            data = (tmp_path / WARMUP_FOLDER / entry.input_data_file).read_bytes()
            assert np.frombuffer(data, dtype=np.int64).tolist() == [1] * length
    assert covered == {(16, 1), (16, 48), (40, 1), (40, 48)}
    assert len({sample.name for sample in encoder.model_warmup}) == 4
    assert {path.name for path in (tmp_path / WARMUP_FOLDER).iterdir()} == {
        entry.input_data_file for sample in encoder.model_warmup for entry in sample.inputs.values()
    }
    for step in ("tokenizer", "head", "topk"):
        assert not parse_config(writer.step(step)).model_warmup


def fused_writer(**changes: Any) -> ConfigWriter:
    settings = SETTINGS.model_copy(update={"mode": "fused"} | changes)
    return ConfigWriter("news", settings, BUCKETS, hidden_size=96, labels=11)


def test_a_fused_domain_is_an_ensemble_of_one_pinned_step_with_the_same_contract():
    writer = fused_writer()
    ensemble = parse_config(writer.ensemble({FUSED: 7}))
    assert (ensemble.name, ensemble.platform, ensemble.max_batch_size) == ("news", "ensemble", 48)
    assert [(one.model_name, one.model_version) for one in ensemble.ensemble_scheduling.step] == [("news_fused", 7)]
    assert (described(ensemble.input), described(ensemble.output)) == (CONTRACT_INPUTS, CONTRACT_OUTPUTS)
    check_edges(ensemble, {"news_fused": parse_config(writer.step(FUSED))})


def test_settings_reach_the_fused_step():
    for engine in ("onnxruntime", "openvino"):
        config = parse_config(fused_writer(engine=engine).step(FUSED))
        assert (config.name, config.max_batch_size, config.instance_group[0].count) == ("news_fused", 48, 2)
        assert {name: value.string_value for name, value in config.parameters.items()} == {
            "engine": engine,
            "intra_op_thread_count": "3",
            "max_length": "40",
            "length_multiple": str(LENGTH_MULTIPLES[engine]),
            "max_queue_size": "256",
        }


def test_queue_settings_reach_the_first_step_and_the_one_that_takes_longest():
    settings = ServingSettings(max_queue_size=96, max_queue_delay_microseconds=500)
    writer = ConfigWriter("news", settings, (16, 40), 8, 3)
    configs = {step: parse_config(writer.step(step)) for step in ("tokenizer", "encoder", "head", "topk", FUSED)}
    bounds = {step: one.parameters["max_queue_size"].string_value for step, one in configs.items()}
    assert bounds == {"tokenizer": "96", "encoder": "", "head": "", "topk": "", FUSED: "96"}
    configs["gpu"] = parse_config(writer.gpu_encoder())
    delays = {step: one.dynamic_batching.max_queue_delay_microseconds for step, one in configs.items()}
    assert delays == {"tokenizer": 0, "encoder": 500, "head": 0, "topk": 0, FUSED: 500, "gpu": 500}


def test_the_fused_step_is_warmed_up_with_texts(tmp_path):
    writer = fused_writer()
    writer.write_warmup_data(FUSED, tmp_path)
    config = parse_config(writer.step(FUSED))
    assert len(config.model_warmup) == 4
    for sample in config.model_warmup:
        assert set(sample.inputs) == set(CONTRACT_INPUTS)
        assert sample.batch_size in {1, 48}
        data = {
            name: (tmp_path / WARMUP_FOLDER / entry.input_data_file).read_bytes()
            for name, entry in sample.inputs.items()
        }
        text = data["instruction"]
        assert int.from_bytes(text[:4], "little") == len(text) - 4
        assert text[4:].decode().split()
        assert np.frombuffer(data["top_k"], np.int32) == [10]


def test_openvino_runs_the_encoder_of_an_ensemble_through_its_own_backend():
    writer = ConfigWriter("news", SETTINGS.model_copy(update={"engine": "openvino"}), BUCKETS, 96, 11)
    encoder = parse_config(writer.step("encoder"))
    assert (encoder.backend, encoder.default_model_filename) == ("openvino", "model.onnx")
    assert {name: value.string_value for name, value in encoder.parameters.items()} == {
        "INFERENCE_NUM_THREADS": "3",
        "NUM_STREAMS": "1",
    }
    assert parse_config(writer.step("head")).backend == "onnxruntime"


WRITE = """
from export.model_config import FUSED, LENGTH_MULTIPLES, STEPS, ConfigWriter
from export.settings import ServingSettings
writer = ConfigWriter("news", ServingSettings(), (16, 32), 384, 5)
print(*[writer.step(step) for step in STEPS], writer.ensemble({step: 1 for step in STEPS}), sep="---")
"""


def test_the_text_is_the_same_in_every_process():
    """A step's digest is taken over it: other text would make an unchanged step a new version."""
    texts = {
        subprocess.run(
            [sys.executable, "-c", WRITE],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert texts.pop().count("---") == len(STEPS)


def test_only_what_a_setting_concerns_changes():
    one = ConfigWriter("news", ServingSettings(), (16, 32), 384, 5)
    other = ConfigWriter("news", ServingSettings(encoder_threads=3), (16, 32), 384, 5)
    assert [step for step in STEPS if one.step(step) != other.step(step)] == ["encoder"]


ascending = st.sets(st.integers(SHORTEST_BUCKET, 600), min_size=1, max_size=6).map(
    lambda lengths: tuple(sorted(lengths))
)


@given(ascending, st.integers(SHORTEST_BUCKET, 700))
def test_buckets_fit_the_encoder(buckets, limit):
    kept = ServingSettings(length_buckets=buckets).buckets_up_to(limit)
    assert list(kept) == sorted(set(kept))
    assert kept[-1] == limit  # no text is cut shorter than it was at training
    assert set(kept[:-1]) == {bucket for bucket in buckets if bucket < limit}


@pytest.mark.parametrize("buckets", [(), (0, 16), (-1,), (SHORTEST_BUCKET - 1, 16), (32, 16), (16, 16)])
def test_buckets_that_make_no_sense_are_refused(buckets):
    with pytest.raises(ValidationError, match="ascending"):
        ServingSettings(length_buckets=buckets)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"max_batch_size": 16}, "serving.max_batch_size"),
        ({"max_batchsize": 64}, "serving.max_batchsize"),
        ({"encoder_threads": 0}, "serving.encoder_threads"),
        ({"length_buckets": [32, 16]}, "serving.length_buckets"),
        ({"length_buckets": [16, "long"]}, r"serving.length_buckets.1"),
    ],
)
def test_a_bad_section_is_one_line_that_names_the_key(values, where):
    with pytest.raises(ExportError, match=where) as caught:
        read_section(ServingSettings, "serving", values)
    assert "\n" not in caught.value.message
    assert "max_batch_size" in caught.value.message


@pytest.mark.parametrize(
    "values", [{"max_batch_size": 2**32}, {"encoder_instances": 2**31}, {"encoder_threads": 2**31}]
)
def test_a_setting_that_config_pbtxt_cannot_hold_is_refused_by_name(values):
    [name] = values
    with pytest.raises(ExportError, match=name):
        read_section(ServingSettings, "serving", values)


def test_sections_read_back():
    assert read_section(ServingSettings, "serving", {"length_buckets": [8, 16]}).length_buckets == (8, 16)
    assert read_section(ExportSettings, "export", {}) == ExportSettings()


def test_the_variant_for_gpus_covers_what_the_engine_takes(writer):
    """On the same tensors as config.pbtxt: Triton reads the one or the other."""
    plain, gpu = parse_config(writer.step("encoder")), parse_config(writer.gpu_encoder())
    assert (gpu.name, gpu.max_batch_size, gpu.backend) == (plain.name, plain.max_batch_size, "tensorrt")
    assert (described(gpu.input), described(gpu.output)) == (described(plain.input), described(plain.output))
    profiles = make_profiles(BUCKETS, 48)
    assert list(gpu.instance_group[0].profile) == [str(number) for number in range(len(profiles))]
    assert gpu.instance_group[0].count == 2
    assert gpu.parameters["intra_op_thread_count"].string_value == "3"  # of the graph, where it answers instead
    assert gpu.optimization.cuda.graphs
    captured = {
        (spec.batch_size, tuple(spec.input["input_ids"].dim), tuple(spec.input["attention_mask"].dim))
        for spec in gpu.optimization.cuda.graph_spec
    }
    assert captured == {(rows, (bucket,), (bucket,)) for rows in (1, 2, 4, 8, 16, 32, 48) for bucket in BUCKETS}
    assert {(sample.batch_size, *sample.inputs["input_ids"].dims) for sample in gpu.model_warmup} == {
        (sample.batch_size, *sample.inputs["input_ids"].dims) for sample in plain.model_warmup
    }


def test_an_engine_lies_beside_the_graph_it_was_built_of(writer, tmp_path):
    built = Fingerprint("NVIDIA L4", "8.9", "550.54", "10.9.0")
    (tmp_path / "built.plan").write_bytes(b"engine")
    folder = tmp_path / "news_encoder" / "4"
    folder.mkdir(parents=True)
    add_engine(folder, EngineFile(tmp_path / "built.plan", built), writer)
    assert (folder / "model.plan").read_bytes() == b"engine"
    assert Fingerprint.read(folder / FINGERPRINT_NAME) == built
    assert parse_config((folder.parent / "configs" / "gpu.pbtxt").read_text()).default_model_filename == "model.plan"
