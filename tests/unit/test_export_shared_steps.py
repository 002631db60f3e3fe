"""Steps named by their content: equal ones bear one name, whatever domain they were made for."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_helpers import build_release

from export.errors import ExportError
from export.model_config import FUSED, STEPS
from export.shared_steps import SHARED, borrowed_encoder, name_by_content
from serving.errors import ReleaseError
from serving.layout import Layout
from serving.live_repository import PARTS, SHARED_STEP, parse_config


def step_folder(root: Path, domain: str, content: str = "weights", config: str = "") -> Path:
    folder = root / f"{domain}_encoder"
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "model.onnx").write_text(content)
    (folder / "config.pbtxt").write_text(f'name: "{domain}_encoder"\nbackend: "onnxruntime"\n{config}')
    return folder


def test_the_name_follows_the_content_and_not_the_domain(tmp_path):
    made = [
        name_by_content("encoder", step_folder(tmp_path / str(number), domain, content, config))
        for number, (domain, content, config) in enumerate(
            [
                ("shop", "weights", ""),
                ("news", "weights", ""),
                ("news", "others", ""),
                ("news", "weights", "max_batch_size: 8"),
            ]
        )
    ]
    assert made[0] == made[1]
    assert len({step.model for step in made}) == 3
    assert {step.version for step in made} == {1}
    assert all(SHARED_STEP.fullmatch(step.model) for step in made), "publishing removes those that nobody pins any more"
    folder = tmp_path / "0" / made[0].model
    assert parse_config((folder / "config.pbtxt").read_text()).name == made[0].model
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]
    assert (folder / "1" / "model.onnx").read_text() == "weights"


def test_publishing_knows_every_step_that_export_makes():
    assert {*STEPS, FUSED} < PARTS
    assert all(SHARED_STEP.fullmatch(f"{step}_0123456789ab") for step in SHARED)


def encoder_release(layout: Layout, number: int) -> Path:
    steps = {"encoder": (number, f"e{number}")}
    release = build_release(layout.releases("music"), number, steps, domain="music")
    graph = release.models / "music_encoder" / str(number) / "model.onnx"
    (graph.parent / "model.bin").rename(graph)
    files = {name.replace("model.bin", "model.onnx"): digest for name, digest in release.manifest.files.items()}
    release.manifest.model_copy(update={"files": files}).write(release.path)
    return graph


def test_the_newest_graph_of_the_precision_is_borrowed_and_checked(tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(ExportError, match=r"no fp32 release of music .*make export DOMAIN=music PRECISION=fp32"):
        borrowed_encoder(layout, "music", "fp32")
    graphs = [encoder_release(layout, number) for number in (1, 2)]
    assert borrowed_encoder(layout, "music", "fp32") == graphs[1]
    with pytest.raises(ExportError, match="no int8 release of music"):
        borrowed_encoder(layout, "music", "int8")
    with pytest.raises(ExportError, match="works with the precisions fp32 and int8, not trt-fp16"):
        borrowed_encoder(layout, "music", "trt-fp16")
    graphs[1].write_text("damaged")
    with pytest.raises(ReleaseError, match="sha256"):
        borrowed_encoder(layout, "music", "fp32")
