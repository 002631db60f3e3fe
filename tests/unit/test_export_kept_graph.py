"""The FP32 graph that one export leaves for the next."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export.kept_graph import KeptGraph
from export.report import Check, VerificationReport

REPORTS = [VerificationReport(graph="a.onnx", texts=2, shapes=((1, 8),), checks=(Check.at_most("loss", 0.1, 0.2),))]
MADE_OF = ("run 1", "encoder 1")


@pytest.fixture
def kept(tmp_path: Path) -> KeptGraph:
    (tmp_path / "made.onnx").write_bytes(b"graph")
    kept = KeptGraph(tmp_path, "shop", MADE_OF)
    kept.keep(tmp_path / "made.onnx", REPORTS)
    return kept


def test_what_was_kept_is_taken(kept: KeptGraph, tmp_path: Path) -> None:
    assert KeptGraph(tmp_path, "shop", MADE_OF).take(tmp_path / "taken.onnx") == REPORTS
    assert (tmp_path / "taken.onnx").read_bytes() == b"graph"
    (tmp_path / "other.onnx").write_bytes(b"other")
    newer = KeptGraph(tmp_path, "shop", ("run 2", "encoder 1"))
    newer.keep(tmp_path / "other.onnx", REPORTS)
    assert newer.take(tmp_path / "taken.onnx") == REPORTS
    assert kept.take(tmp_path / "taken.onnx") is None, "one a domain"
    assert (tmp_path / "taken.onnx").read_bytes() == b"other", "what is not taken leaves the target alone"


@pytest.mark.parametrize("made_of", [("run 2", "encoder 1"), ("run 1", "encoder 2"), ("run 1encoder 1",), ()])
def test_what_is_made_of_other_things_is_not_taken(kept: KeptGraph, tmp_path: Path, made_of: tuple[str, ...]) -> None:
    assert KeptGraph(tmp_path, "shop", made_of).take(tmp_path / "taken.onnx") is None
    assert KeptGraph(tmp_path, "news", MADE_OF).take(tmp_path / "taken.onnx") is None
    assert not (tmp_path / "taken.onnx").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "shop-fp32.onnx").write_bytes(b"grapf"),
        lambda folder: (folder / "shop-fp32.onnx").unlink(),
        lambda folder: (folder / "shop-fp32.json").unlink(),
        lambda folder: (folder / "shop-fp32.json").write_bytes(b"{"),
        lambda folder: (folder / "shop-fp32.json").write_bytes(b"[]"),
        lambda folder: (folder / "shop-fp32.json").write_bytes(b"\xff"),
    ],
)
def test_what_is_damaged_counts_as_none(kept: KeptGraph, tmp_path: Path, harm: Callable[[Path], object]) -> None:
    harm(tmp_path / "cache" / "graphs")
    assert kept.take(tmp_path / "taken.onnx") is None
    kept.keep(tmp_path / "made.onnx", REPORTS)
    assert kept.take(tmp_path / "taken.onnx") == REPORTS


def test_where_nothing_can_be_kept_nothing_is_and_nobody_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    (tmp_path / "made.onnx").write_bytes(b"graph")
    kept = KeptGraph(tmp_path, "shop", MADE_OF)
    kept.keep(tmp_path / "made.onnx", REPORTS)
    assert kept.take(tmp_path / "taken.onnx") is None
