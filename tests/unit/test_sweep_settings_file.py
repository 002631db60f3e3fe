"""Writing settings into a domain's YAML changes the values asked for and not one character else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_helpers import ROOT

from sweep.errors import SweepError
from sweep.settings_file import write_settings

COMMENTED = """# head
domain: shop

serving:
  mode: ensemble        # or fused: all steps in one
  # lengths, in tokens
  length_buckets: [16, 32]   # the last is the limit
  topk:
    index: exact  # mode: not this one

# Read by gates.
gates: {}
"""


def written(path: Path, text: str, settings: dict[str, Any]) -> str:
    path.write_text(text, encoding="utf-8")
    write_settings(path, settings)
    return path.read_text(encoding="utf-8")


def test_values_change_in_place_new_keys_come_last_and_comments_stay(tmp_path: Path) -> None:
    changes = {"mode": "fused", "length_buckets": (16, 32, 64), "max_queue_delay_microseconds": 500}
    assert (
        written(tmp_path / "shop.yaml", COMMENTED, changes)
        == """# head
domain: shop

serving:
  mode: fused           # or fused: all steps in one
  # lengths, in tokens
  length_buckets: [16, 32, 64]  # the last is the limit
  topk:
    index: exact  # mode: not this one
  max_queue_delay_microseconds: 500

# Read by gates.
gates: {}
"""
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("domain: shop\n", "domain: shop\n\nserving:\n  mode: fused\n"),
        ("serving:\nsla: {}\n", "serving:\n  mode: fused\nsla: {}\n"),
        ("serving:  # none yet\n", "serving:  # none yet\n  mode: fused\n"),
        ("serving:\n    engine: openvino\n", "serving:\n    engine: openvino\n    mode: fused\n"),
    ],
)
def test_a_section_that_is_empty_or_missing_is_made(tmp_path: Path, text: str, expected: str) -> None:
    assert written(tmp_path / "shop.yaml", text, {"mode": "fused"}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "serving: {mode: ensemble}\n",
        "serving:\n  mode:\n    ensemble\n",
        "serving:\n  length_buckets: [16,\n    32]\n  mode: ensemble\n",
        "serving: &kept\n  mode: ensemble\n",
        "- serving\n",
        "serving: [\n",
    ],
)
def test_what_cannot_be_changed_line_by_line_is_left_alone_and_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shop.yaml"
    with pytest.raises(SweepError) as refused:
        written(path, text, {"mode": "fused", "length_buckets": (16, 64)})
    assert path.read_text(encoding="utf-8") == text
    assert refused.value.message.endswith("serving:\n  mode: fused\n  length_buckets: [16, 64]")


def test_line_ends_and_odd_characters_elsewhere_stay(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_bytes("domain: shop\r\nserving:\r\n  mode: ensemble\r\n# \u2028\r\nsla: {}\r\n".encode())
    write_settings(path, {"max_queue_size": 64})
    assert (
        path.read_bytes()
        == ("domain: shop\r\nserving:\r\n  mode: ensemble\r\n  max_queue_size: 64\n# \u2028\r\nsla: {}\r\n").encode()
    )


def test_a_link_stays_one_and_the_file_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "shared.yaml", tmp_path / "shop.yaml"
    path.write_text("serving:\n  mode: ensemble\n")
    path.chmod(0o640)
    link.symlink_to(path.name)
    write_settings(link, {"mode": "fused"})
    assert link.is_symlink()
    assert path.read_text() == "serving:\n  mode: fused\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_not_there_is_an_error_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="No such file"):
        write_settings(tmp_path / "none.yaml", {"mode": "fused"})


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_can_be_changed(tmp_path: Path, config: Path) -> None:
    path = tmp_path / config.name
    shutil.copy2(config, path)
    changes = {"mode": "fused", "length_buckets": (8, 16, 256), "max_queue_size": 96}
    write_settings(path, changes)
    before, after = (yaml.safe_load(one.read_text(encoding="utf-8")) for one in (config, path))
    assert after == before | {"serving": before["serving"] | changes | {"length_buckets": [8, 16, 256]}}
    lines = [one.read_text(encoding="utf-8").splitlines() for one in (config, path)]
    assert [line for line in lines[0] if line.lstrip().startswith("#")] == [
        line for line in lines[1] if line.lstrip().startswith("#")
    ]
