"""The load test against the real server: short runs, both verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

INSTRUCTIONS = ["I want to buy something blue", "a present for my father", "something warm for the winter", "shoes"]


@pytest.fixture
def load(server, tmp_path):
    instructions = tmp_path / "instructions.jsonl"
    lines = [json.dumps({"text": text, "history": [f"unknown {index}"]}) for index, text in enumerate(INSTRUCTIONS)]
    instructions.write_text("\n".join(lines))

    def run(sla, *arguments):
        """Return the finished process and the folder of its report."""
        config = tmp_path / "domain.yaml"
        config.write_text(f"sla: {json.dumps(sla)}")
        command = [sys.executable, "-m", "loadtest", "--url", server.grpc_url, "--domain", server.domain]
        command += ["--config", config, "--instructions", instructions, "--output-dir", tmp_path / "reports"]
        command += ["--users", "4", "--spawn-rate", "8", "--duration", "5", "--k", "5", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
        reports = list((tmp_path / "reports").glob("*"))
        assert len(reports) <= 1
        return done, reports[0] if reports else None

    return run


def test_a_lax_sla_is_met(load):
    sla = {"p50_ms": 5000, "p95_ms": 5000, "p99_ms": 5000, "max_error_rate": 0.0, "min_requests_per_second": 1}
    done, folder = load(sla, "--open-loop-rate", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SLA met" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]

    report = json.loads((folder / "report.json").read_text())
    assert report["met"] is True
    assert [criterion["name"] for criterion in report["closed_loop_verdict"]["criteria"]] == list(sla)
    closed, opened = report["closed_loop"], report["open_loop"]
    assert closed["failures"] == 0
    assert closed["requests"] == sum(closed["releases"].values()) > 5
    assert 0 < closed["p50_ms"] <= closed["p95_ms"] <= closed["p99_ms"] <= closed["max_ms"]
    assert 4.5 < closed["duration_s"] < 15
    assert opened["scheduled"] == opened["sent"] == opened["requests"] > 20
    assert opened["errors"] == {}

    html = (folder / "report.html").read_text()
    assert "<html" in html
    assert "recommend" in html
    markdown = (folder / "report.md").read_text()
    assert markdown.startswith("# Load test of ")
    assert "| closed loop | p50_ms | at most 5000 |" in markdown


def test_make_adds_open_loop_load_at_a_rate(server, tmp_path):
    config = tmp_path / "lax.yaml"
    config.write_text("sla: {p99_ms: 5000}")
    printed = server.make(
        "loadtest", "USERS=2", "DURATION=2", "RATE=20", f"CONFIG={config}", "SET=sla.p95_ms=4000"
    ).stdout
    assert "SLA met" in printed
    assert [line.split()[0] for line in printed.splitlines() if "p99_ms" in line] == ["closed", "open"]
    bars = [line.split()[2:6] for line in printed.splitlines() if "p95_ms" in line]
    assert bars == [["p95_ms", "at", "most", "4000"]] * 2
    page = Path(printed.rpartition("Report: ")[2].strip())
    opened = json.loads(page.with_suffix(".json").read_text())["open_loop"]
    assert opened["rate"] == 20
    assert opened["sent"] == opened["scheduled"] > 0


def test_an_impossible_sla_is_missed(load):
    done, folder = load({"p50_ms": 0.001, "max_error_rate": 0.0}, "--duration", "2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "SLA missed" in done.stdout
    criteria = json.loads((folder / "report.json").read_text())["closed_loop_verdict"]["criteria"]
    assert [criterion["met"] for criterion in criteria] == [False, True]


def test_an_unknown_domain_is_an_error_before_any_load(load):
    done, folder = load({"p50_ms": 60}, "--domain", "no-such-domain")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "no-such-domain" in done.stderr
    assert done.stderr.count("\n") == 1
    assert folder is None
