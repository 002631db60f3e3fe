"""The command's exit codes and one-line errors, where no server is needed, and what the room imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import loadtest

ROOM = Path(loadtest.__file__).parent


@pytest.fixture
def files(tmp_path):
    (tmp_path / "x.yaml").write_text("sla: {p50_ms: 60}")
    (tmp_path / "x.jsonl").write_text('"a shirt"')
    return tmp_path


def run(files, *arguments, config="x.yaml", instructions="x.jsonl"):
    common = ["--config", files / config, "--instructions", files / instructions, "--output-dir", files / "reports"]
    return subprocess.run(
        [sys.executable, "-m", "loadtest", "--url", "127.0.0.1:1", *map(str, common), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_unreachable_server_is_one_line_before_any_load(files):
    done = run(files, "--duration", "30")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: 127.0.0.1:1 is unavailable")
    assert done.stderr.count("\n") == 1
    assert not (files / "reports").exists()


@pytest.mark.parametrize(
    ("keywords", "said"),
    [({"config": "none.yaml"}, "none.yaml: cannot read"), ({"instructions": "none.jsonl"}, "none.jsonl: cannot read")],
)
def test_a_missing_file_is_one_line(files, keywords, said):
    done = run(files, **keywords)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--users", "0"], ["--k", "101"], ["--duration", "-1"], ["--duration", "inf"], ["--what"]]
)
def test_a_usage_error_is_not_taken_for_a_missed_sla(files, arguments):
    done = run(files, *arguments)
    assert done.returncode == 1
    assert "Error: " in done.stderr


def test_users_that_would_never_all_start_are_one_line(files):
    done = run(files, "--spawn-rate", "1e-9")
    assert done.returncode == 1
    assert "raise --spawn-rate" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_says_what_the_exit_codes_mean(files):
    done = run(files, "--help")
    assert done.returncode == 0
    assert "2 when it is missed" in done.stdout


def test_the_room_imports_no_other_than_the_client():
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"training", "export", "serving", "torch", "transformers"}, path
