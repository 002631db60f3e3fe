"""Which YAML the commands of the serving room go by."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from deploy_helpers import Shop

from serving import options
from serving.__main__ import main
from serving.layout import Layout


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(Layout(tmp_path / "var"), monkeypatch)


def run(shop: Shop, *arguments: str) -> str:
    return CliRunner().invoke(main, [*arguments, "--var", str(shop.layout.var)]).output


@pytest.mark.parametrize("verb", [("canary", "verdict"), ("canary", "up"), ("deploy",)])
def test_a_command_goes_by_the_projects_own_yaml(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.setattr(options, "CONFIGS", tmp_path)
    (tmp_path / "shop.yaml").write_text("canary: {feedback_margin: 7}")
    command = (*verb, "--domain", "shop")
    assert "canary.feedback_margin" in run(shop, *command)
    (tmp_path / "other.yaml").write_text("canary: {latency_ratio: none}")
    assert "canary.latency_ratio" in run(shop, *command, "--config", str(tmp_path / "other.yaml"))
