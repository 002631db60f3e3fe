"""`python -m sweep` without a server: what it writes is what it measured, whatever the command line sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from sweep import command
from sweep.stage import Candidate, Rates


class FakeStage:
    """Answers at once: 64 rows are better than 32, all else is equal."""

    def __init__(self, *_: object) -> None:
        pass

    def measure(self, candidates: Sequence[Candidate], *_: object, rounds: int, **__: object) -> list[Rates]:
        speeds = [1 + 0.1 * (one.settings.max_batch_size == 64) - 0.5 * (not one.batching) for one in candidates]
        return [Rates(p50_ms={1: (1.0,) * rounds}, per_second={1: (250 * speed,) * rounds}) for speed in speeds]


@pytest.fixture
def sweep(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    release = SimpleNamespace(number=1, instructions=None, manifest=SimpleNamespace(precision="fp32"))
    monkeypatch.setattr(command, "_release", lambda *_: release)
    monkeypatch.setattr(command, "ReleaseParts", SimpleNamespace(of=lambda _: None))
    monkeypatch.setattr(command, "read_workload", lambda _: [])
    monkeypatch.setattr(command, "Stage", FakeStage)
    monkeypatch.setattr(command, "_cores", lambda _: (frozenset({0}), frozenset({1})))
    monkeypatch.setattr(command, "_keep", lambda *_: None)
    monkeypatch.setattr(command, "machine", lambda: {})

    def run(*overrides: str) -> tuple[str, dict[str, Any]]:
        arguments = ["--config", str(tiny_config), "--var", str(tmp_path / "var"), "--in-flight", "1", *overrides]
        result = CliRunner().invoke(command.main, arguments)
        assert result.exit_code == 0, result.output
        return result.output, yaml.safe_load(tiny_config.read_text(encoding="utf-8")).get("serving", {})

    return run


def test_what_the_command_line_sets_is_written_with_what_was_measured_with_it(sweep: Callable[..., Any]) -> None:
    output, serving = sweep("serving.mode=fused")
    assert serving == {"mode": "fused", "max_batch_size": 64}
    assert "mode: fused" in output
    output, serving = sweep("serving.mode=fused")
    assert "has the best settings already" in output
    output, _ = sweep("serving.mode=ensemble", "--no-write")
    assert "better" not in output
    assert "given, and not compared with what" in output
    assert "had: mode\n" in output
    output, serving = sweep("serving.mode=ensemble")
    assert serving["mode"] == "ensemble"
    assert "has the best settings already" not in output
