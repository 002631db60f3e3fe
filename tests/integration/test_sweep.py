"""`make tune-serving` on a real server: what it measures, what it writes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project

from serving import process_tree
from serving.layout import Layout

SHORT = ("--rounds", "2", "--seconds", "0.1", "--in-flight", "1,4")
FEW = (
    "serving.engine=onnxruntime",
    "serving.length_buckets=[16,64]",
    "serving.max_batch_size=32",
    "serving.max_queue_size=64",
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ecommerce.yaml"
    shutil.copy2(ROOT / "configs" / "ecommerce.yaml", path)
    return path


def command(project: Project, config: Path, *more: str) -> list[str]:
    options = ("--config", str(config), "--var", str(project.var))
    return [sys.executable, "-m", "sweep", *options, *more, *project.settings]


def content(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "tune-serving" not in path.parts}


def is_clean(project: Project) -> bool:
    work = Layout(project.var / "tune-serving" / "work")
    return not (
        work.var.exists()
        or process_tree.processes(work.shared_memory_prefix)
        or process_tree.shared_memory_regions(work.shared_memory_prefix)
    )


def test_it_measures_a_release_and_writes_what_was_best(own_project: Project, config: Path) -> None:
    before, text = content(own_project.var), config.read_text()
    done = subprocess.run(
        command(own_project, config, *SHORT, *FEW), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [path] = (own_project.var / "tune-serving").glob("*.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(path.read_text())
    trials = {trial["question"]: trial["measured"] for trial in report["outcome"]["trials"]}
    assert set(trials) == {"steps and engine", "queue delay", "all together"}
    assert {one["settings"]["mode"] for one in trials["steps and engine"]} == {"ensemble", "fused"}
    assert all(rate > 0 for one in trials["queue delay"] for rate in one["per_second"]["4"])
    assert trials["all together"][-1]["batching"] is False
    after = yaml.safe_load(config.read_text())
    assert after["serving"]["mode"] == report["outcome"]["after"]["mode"]
    kept = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert kept == [line for line in config.read_text().splitlines() if line.lstrip().startswith("#")]
    assert content(own_project.var) == before
    assert is_clean(own_project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way_it_leaves_nothing_behind(own_project: Project, config: Path, number: signal.Signals) -> None:
    text, work = config.read_text(), Layout(own_project.var / "tune-serving" / "work")
    # What runs in a shell's background inherits that SIGINT is ignored; a handler becomes the default in a new program.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(own_project, config, *FEW), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 60
    while not process_tree.processes(work.shared_memory_prefix):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert config.read_text() == text
    assert is_clean(own_project)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no release of ecommerce in {var} to measure; run `make export` first"),
        (("--release", "7"), "there is no release 7 in {var}/releases/ecommerce (there: none); run `make export`"),
        (("--in-flight", "8,many"), "--in-flight is '8,many'; it must be numbers from 1 on, as 1,8,32"),
        (("--server-cores", "999"), "one core more than the server's is needed for the load, and there are {cores}"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(
    tmp_path: Path, config: Path, options: tuple[str, ...], message: str
) -> None:
    var = tmp_path / "var"
    arguments = ("--config", str(config), "--var", str(var), *options)
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"Error: {message.format(var=var, cores=len(os.sched_getaffinity(0)))}"]
    assert not var.exists()
