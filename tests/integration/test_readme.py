"""What the README tells a person to type does what it says."""

import re
import shlex
import subprocess
import sys

import pytest
from project import ROOT, Project

README = (ROOT / "README.md").read_text()
# Run by other means: the two commands by the fixtures and by CI, the benchmark by test_benchmark.py; the others need a
# person's own data, or would undo the test's own server.
ELSEWHERE = {
    "make export deploy",
    "make test",
    "make bench ROUNDS=1",
    "make export deploy DATA=../datasets",
    "make stop",
}
# A whole tuning takes minutes; how good one gets is not for a test of commands.
TUNING = "encoder_tuning.method=lora"
QUICK = f"{TUNING} encoder_tuning.epochs=1 encoder_tuning.items_per_label=1 encoder_tuning.ranking_weight=0"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_the_readme_has_commands() -> None:
    assert set(commands()) >= ELSEWHERE
    assert len(commands()) > len(ELSEWHERE) + 5


@pytest.mark.parametrize("command", [command for command in commands() if command not in ELSEWHERE])
def test_a_command_works(server: Project, command: str) -> None:
    make, *arguments = shlex.split(command)
    assert make == "make"
    done = server.make(*(argument.replace(TUNING, QUICK) for argument in arguments))
    assert done.stdout.strip()
    assert "Error" not in done.stderr


def test_the_python_example_works(server: Project) -> None:
    [example] = blocks("python")
    code = example.replace("127.0.0.1:8001", server.grpc_url)
    assert code != example
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "answered by release 1" in done.stdout
