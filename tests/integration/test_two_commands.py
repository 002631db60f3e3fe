"""What a person sees who types the README's commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from project import ROOT, Project

from serving import process_tree
from serving.layout import Layout


def test_export_deploy_ends_in_a_live_recommendation(deployed: tuple[Project, str]) -> None:
    project, printed = deployed
    rows = re.findall(r"^ +\d+ .*sku-\d{4}.*$", printed, flags=re.MULTILINE)
    assert len(rows) == 10
    assert all("blue" in row.lower() and "Shirts" in row for row in rows[:5])
    assert "make recommend" in printed
    assert "make stop" in printed
    assert (project.var / "releases" / "ecommerce" / "1" / "manifest.json").is_file()


def test_a_second_run_does_no_work_twice(deployed: tuple[Project, str]) -> None:
    project, _ = deployed
    before = sorted(path.relative_to(project.var) for path in project.var.rglob("*") if "/live/" not in str(path))
    printed = project.make("export", "deploy").stdout
    assert "run" in printed
    assert printed.count("is up to date") == 2
    assert "is live already" in printed
    after = sorted(path.relative_to(project.var) for path in project.var.rglob("*") if "/live/" not in str(path))
    assert after == before


def test_recommend_takes_hostile_shell_text(server: Project) -> None:
    text = "a \"blue\" 'shirt' `touch owned` $(shell touch owned) $$(touch owned); $HOME && exit 3 | * ?"
    printed = server.make("recommend", f"TEXT={text}", "K=3", "HISTORY=sku-0001,sku-0002").stdout
    assert len(re.findall(r"sku-\d{4}", printed)) == 3
    assert not (ROOT / "owned").exists()


def test_recommend_takes_text_that_looks_like_an_option(server: Project) -> None:
    assert len(re.findall(r"sku-\d{4}", server.make("recommend", "TEXT=--help", "K=2").stdout)) == 2


def test_a_folder_name_with_a_space_is_refused_before_anything_is_removed(tmp_path: Path) -> None:
    command = ["make", "clean", f"VAR={tmp_path / 'one two'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "VAR must be one word" in done.stderr


def test_a_setup_that_was_cut_off_before_pip_was_there_begins_anew(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")  # the interpreter is there, pip is not
    maker = tmp_path / "python"
    maker.write_text('#!/bin/sh\n[ "$1" = -c ] || { echo "told: $*"; exit 1; }\n')
    for path in (python, maker):
        path.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={maker}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert f"told: -m venv {tmp_path / 'venv'}" in done.stdout


def test_status_and_logs(server: Project) -> None:
    assert re.search(r"release 1 answers a real instruction in [\d.]+ ms", server.make("status").stdout)
    assert "Started GRPCInferenceService" in server.make("logs").stdout


def test_help_lists_every_verb_and_variable() -> None:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    [verbs] = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    steps = {"running", "preflight", "tensorrt"}  # of other verbs, not meant to be typed
    for verb in set(verbs.split()) - steps:
        assert re.search(rf"^  {verb} +\S", printed, flags=re.MULTILINE), verb
    described = printed.partition("Variables: ")[2]
    for variable in re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE):
        assert re.search(rf"\b{variable}\b", described), variable


def test_data_describes_the_dataset(server: Project) -> None:
    printed = server.make("data").stdout
    assert "522" in printed


def test_plain_tritonclient_finds_the_contract(server: Project) -> None:
    script = Path(__file__).with_name("plain_tritonclient.py")
    command = [sys.executable, "-I", str(script), server.grpc_url, server.http_url, server.domain]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "contract holds" in done.stdout


def test_the_manifest_names_what_answers(server: Project) -> None:
    manifest = json.loads((server.var / "releases" / "ecommerce" / "1" / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    assert set(manifest["steps"]) == {"tokenizer", "encoder", "head", "topk"}


def test_no_process_of_the_server_holds_torch_and_memory_is_bounded(server: Project) -> None:
    tree = process_tree.processes(Layout(server.var).shared_memory_prefix)
    assert len(tree) == 6
    for process in tree:
        mapped = {Path(one.path).name for one in process.memory_maps()}
        assert not any("torch" in name or "transformers" in name for name in mapped), process.cmdline()
    assert process_tree.proportional_memory_bytes(tree) < 700 << 20
