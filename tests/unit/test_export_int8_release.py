"""An INT8 release, from a run to its manifest: what it says of its products and of the CPU, and its settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from run_helpers import made_run
from tiny_encoders import save_encoder

from export.errors import ExportError, VerificationError
from export.graph_file import load_graph
from export.int8 import Int8Settings
from export.qdq import WEIGHT_CODES
from export.release import export_release
from export.report import INT8_BUDGET
from serving.layout import Layout
from serving.releases import Release
from training.config_loading import load_config
from training.dataset import Instruction, Item
from training.model import InstructionModel
from training.run import Run

SHARE = "share of products in INT8"
LOOSE = INT8_BUDGET.model_copy(  # random weights lose more than trained ones
    update={
        "mean_cosine": 0.9,
        "min_cosine": 0.8,
        "shape_cosine": 0.8,
        "max_absolute": 0.5,
        "label_agreement": 0.2,
        "top_k_overlap": 0.2,
        "task_loss": 1.0,
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("int8")
    (root / "encoder").mkdir()
    encoder = save_encoder("bert", root / "encoder")
    model = InstructionModel.from_folder(encoder, "mean", 32, labels=2)
    names = [f"{colour} {kind}" for colour in ("blue", "red", "green", "black") for kind in ("shirt", "hat")]
    items = [Item(name, name, f"a {name}", name.split()[1], 1.0, {}) for name in names]
    asked = [
        Instruction(f"{split}-{name}", f"I want a {name}", name.split()[1], {}, {}, split)
        for split in ("train", "test")
        for name in names
    ]
    config = Path(__file__).resolve().parents[2] / "configs/tiny.yaml"
    return made_run(config, root / "var", items, asked, encoder=encoder, embed=model.embed)


def export(run: Run, *overrides: str) -> Release:
    config = load_config(
        Path(__file__).resolve().parents[2] / "configs/tiny.yaml", ("serving.length_buckets=[16,32]", *overrides)
    )
    return export_release(run, config, Layout(run.path.parents[2]), "int8").release


def greatest_code(release: Release) -> int:
    [graph] = release.path.glob("models/*_encoder/*/model.onnx")
    codes = [
        numpy_helper.to_array(one) for one in load_graph(graph).graph.initializer if one.name.endswith(WEIGHT_CODES)
    ]
    assert codes
    return max(int(np.abs(one.astype(int)).max()) for one in codes)


def test_a_release_says_how_much_of_it_is_int8_and_weights_are_of_7_bits_by_a_setting(run, monkeypatch):
    monkeypatch.setattr("export.graphs.INT8_BUDGET", LOOSE)
    release = export(run)
    assert release.manifest.verification["encoder-int8.onnx"][SHARE] == 1
    assert f"| {SHARE} | 1 | at least 0.5 | yes |" in (release.path / "verification.md").read_text()
    assert greatest_code(release) == 127

    reduced = export(run, "export.int8.reduce_range=true")
    assert reduced.number == release.number + 1
    assert greatest_code(reduced) == 63
    with pytest.raises(ExportError, match=r"export\.int8\.reduce_ranges"):
        export(run, "export.int8.reduce_ranges=true")


def test_a_graph_that_stayed_in_fp32_is_no_int8_release(run, monkeypatch):
    monkeypatch.setattr("export.graphs.INT8_BUDGET", LOOSE)
    monkeypatch.setattr("export.graphs.INT8_RECIPES", {"int8": Int8Settings(max_relative_error=0)})
    with pytest.raises(VerificationError, match=f"{SHARE} is 0, the bar is at least 0.5"):
        export(run, "export.calibration_texts=8")
