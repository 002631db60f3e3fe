"""What is refused before a training, of all that comes after it."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from preflight.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"


def check(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_kit_passes_in_silence(config: Path) -> None:
    result = check(config, "serving.mode=fused", "gates.latency_ratio=3")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--precision", "in8"], "PRECISION="),
        (["--precision", "trt-fp16", "serving.mode=fused"], "serving.mode"),
        (["serving.mode=fuse"], "serving.mode"),
        (["serving.engine=openvin"], "serving.engine"),
        (["export.calibration_text=64"], "export.calibration_text"),
        (["gates.acuracy_margin=0.1"], "gates.acuracy_margin"),
        (["canary.event=clicks"], "canary.event"),
        (["continual.budgets=1"], "continual.budgets"),
        (["sla.p95=100"], "sla.p95"),
        (["training.epoch=3"], "training.epoch"),
    ],
)
def test_a_typo_is_named_in_one_line(arguments: list[str], named: str) -> None:
    result = check(CONFIGS / "ecommerce.yaml", *arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert named in result.output
    assert result.output.count("\n") == 1


def test_a_typo_in_the_yaml_itself_is_named(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    text = (CONFIGS / "tiny.yaml").read_text(encoding="utf-8")
    config.write_text(text.replace("p95_ms", "p96_ms"), encoding="utf-8")
    assert "sla.p96_ms" in check(config).output
    config.write_text(text[: text.index("sla:")], encoding="utf-8")
    assert check(config).exit_code == 0


def test_nothing_heavy_is_loaded() -> None:
    script = (
        "import sys, preflight.__main__; print(*({'torch', 'transformers', 'pandas', 'onnx'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout == "\n"
