"""A release, laid out with other settings: the same weights and items by hard link, whichever way it is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from release_parts import BIAS, ITEMS, WEIGHT, release_of

from export.model_config import STEPS
from export.settings import ServingSettings
from serving.engines.fingerprint import Fingerprint
from serving.errors import ReleaseError
from serving.live_repository import parse_config
from serving.releases import Release
from serving.steps.text_encoder import Head
from sweep.errors import SweepError
from sweep.variant import ReleaseParts


@pytest.fixture(params=["ensemble", "fused"])
def release(tmp_path: Path, request: pytest.FixtureRequest) -> Release:
    return release_of(tmp_path / "releases", request.param)


def test_a_releases_parts_are_found_whichever_way_it_is_served(release: Release) -> None:
    parts = ReleaseParts.of(release)
    assert parts.limit == 40
    assert np.array_equal(parts.weight, WEIGHT)
    assert np.array_equal(parts.bias, BIAS)
    assert {path.name for path in parts.items} == set(ITEMS)


def test_in_four_steps(release: Release, tmp_path: Path) -> None:
    parts, live = ReleaseParts.of(release), tmp_path / "live"
    settings = ServingSettings(length_buckets=(8, 256), max_batch_size=64, max_queue_delay_microseconds=500)
    parts.lay_out(live, "one", settings)
    assert {path.name for path in live.iterdir()} == {"one", *(f"one_{step}" for step in STEPS)}
    assert (live / "one_encoder" / "1" / "model.onnx").samefile(parts.graph)
    assert (live / "one_topk" / "1" / "index.faiss").read_text() == "codes"
    assert not (live / "one_topk" / "1" / "steps" / "old.py").exists()
    head = onnx.load(live / "one_head" / "1" / "model.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(head[0]), WEIGHT)
    encoder = parse_config((live / "one_encoder" / "config.pbtxt").read_text())
    assert (encoder.max_batch_size, encoder.dynamic_batching.max_queue_delay_microseconds) == (64, 500)
    assert all(one.allow_ragged_batch for one in encoder.input)
    tokenizer = parse_config((live / "one_tokenizer" / "config.pbtxt").read_text())
    assert tokenizer.parameters["length_buckets"].string_value == "8,40"  # the encoder's limit stays
    ensemble = parse_config((live / "one" / "config.pbtxt").read_text())
    assert [step.model_version for step in ensemble.ensemble_scheduling.step] == [1] * 4


def test_in_one_step_beside_another_and_without_batching(release: Release, tmp_path: Path) -> None:
    parts, live = ReleaseParts.of(release), tmp_path / "live"
    parts.lay_out(live, "one", ServingSettings(mode="fused"))
    parts.lay_out(live, "two", ServingSettings(mode="fused", encoder_threads=2), batching=False)
    folder = live / "two_fused" / "1"
    assert {*ITEMS, "model.py", "steps", "model.onnx", "tokenizer.json", "__pycache__"} <= {
        path.name for path in folder.iterdir()
    }
    assert np.array_equal(Head.open(folder).weight, WEIGHT)
    configs = [parse_config((live / f"{name}_fused" / "config.pbtxt").read_text()) for name in ("one", "two")]
    assert [one.HasField("dynamic_batching") for one in configs] == [True, False]
    assert configs[1].parameters["intra_op_thread_count"].string_value == "2"


def damage(release: Release) -> None:
    next(release.models.glob("*/5/model.onnx")).write_text("other")


def with_engine(release: Release) -> None:
    built = Fingerprint(gpu="H100", compute_capability="9.0", driver="1", tensorrt="10")
    release.manifest.model_copy(update={"engine": built}).write(release.path)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [(damage, ReleaseError, "sha256"), (with_engine, SweepError, "TensorRT engine.*PRECISION=int8")],
)
def test_what_cannot_be_measured_is_refused(
    release: Release, harm: Callable[[Release], None], error: type[Exception], message: str
) -> None:
    harm(release)
    with pytest.raises(error, match=message):
        ReleaseParts.of(Release(release.path))
