"""A release goes live on a running server: nobody notices, and a bad one never does."""

import hashlib
import json
import re
import threading
import time
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from instructrec_client import Client, InstructRecError
from project import ROOT, Project
from safetensors.numpy import load_file, save_file

from export.__main__ import main as export
from serving.deploy import deploy
from serving.errors import PublishError
from serving.layout import Layout
from serving.preconditions import require_live
from serving.releases import ReleaseStore
from serving.server import Server


def keep_asking(project: Project, stop: threading.Event, seen: Counter[str]) -> None:
    with Client(project.grpc_url, retries=0, timeout=30.0) as client:
        while not stop.is_set():
            try:
                answer = client.recommend("I want to buy a blue shirt", k=3)
            except InstructRecError as error:
                seen[f"failed: {error}"] += 1
            else:
                seen[answer.release] += 1
                if answer.model_version != answer.release:
                    seen[f"mixed: {answer.model_version} and {answer.release}"] += 1
            time.sleep(0.01)


def test_publish_and_roll_back_under_load(own_two_releases: Project, two_releases: tuple[Project, str]) -> None:
    own_project = own_two_releases
    own_project.make("deploy", "RELEASE=1")
    stop, seen = threading.Event(), Counter[str]()
    callers = [threading.Thread(target=keep_asking, args=(own_project, stop, seen)) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        assert "published to the running server" in own_project.make("deploy").stdout
        assert "release 1 answers again, switched in" in own_project.make("rollback").stdout
        assert "release 2 answers again" in own_project.make("rollback", "TO=2").stdout
        assert "release 1 answers again" in own_project.make("rollback").stdout
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(seen) == {"1", "2"}, seen
    assert min(seen.values()) > 0

    layout = Layout(own_project.var)
    state, second = Server(layout).state(), ReleaseStore(layout.releases("ecommerce")).open(2)
    assert state is not None

    def check() -> None:
        require_live(layout, "ecommerce", 2)

    with pytest.raises(PublishError, match="was made to follow release 2, but release 1 is live by now"):
        deploy(layout, second, state.endpoints, gates=None, check=check)
    assert "release 1 answers" in own_project.make("status").stdout

    manifests = [json.loads((own_project.var / "releases/ecommerce" / n / "manifest.json").read_text()) for n in "12"]
    steps = [{name: step["version"] for name, step in manifest["steps"].items()} for manifest in manifests]
    assert "exported as fp32 and verified" in two_releases[1]
    assert steps[0] == {"tokenizer": 1, "encoder": 1, "head": 1, "topk": 1}
    assert steps[1] == {"tokenizer": 1, "encoder": 2, "head": 2, "topk": 2}, "an unchanged step keeps its version"

    listed = own_project.make("releases").stdout.splitlines()
    assert ["answers now" in line for line in listed if re.match(r"│ [12] ", line)] == [True, False]
    different = own_project.make("diff").stdout
    assert re.search(r"step encoder +│ version 1 +│ version 2", different)
    assert "step tokenizer" not in different
    journal = (own_project.var / "journal/ecommerce.jsonl").read_text().splitlines()
    assert [json.loads(line)["verb"] for line in journal] == ["deploy", "deploy", "rollback", "rollback", "rollback"]


def test_a_release_that_triton_cannot_load_never_goes_live(own_two_releases: Project) -> None:
    """Its files are what its manifest says, and still it does not work: the release before goes on answering."""
    own_project = own_two_releases
    own_project.make("deploy", "RELEASE=1")
    releases = own_project.var / "releases" / "ecommerce"
    code = releases / "2" / "models" / "ecommerce_topk" / "2" / "model.py"
    broken = "raise RuntimeError('this release is broken')\n"
    code.unlink()
    code.write_text(broken)
    manifest_file = releases / "2" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    manifest["files"]["models/ecommerce_topk/2/model.py"] = hashlib.sha256(broken.encode()).hexdigest()
    manifest_file.unlink()
    manifest_file.write_text(json.dumps(manifest))

    done = own_project.make("deploy", check=False)
    assert done.returncode != 0
    assert "release 2 is not live" in done.stderr
    assert "release 1 still answers" in done.stderr
    assert "release 1 answers" in own_project.make("status").stdout
    # Nothing of it is left that a server started later could stumble over.
    own_project.make("stop")
    assert "release 1 answers" in own_project.make("deploy", "RELEASE=1").stdout


def test_a_failed_verification_leaves_no_release(own_project: Project) -> None:
    """A run whose weights were damaged after training cannot become a release."""
    [run] = (own_project.var / "runs" / "ecommerce").iterdir()
    weights = run / "encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = "encoder.layer.1.output.dense.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    weights.unlink()  # it is a hard link to the run that other tests use
    save_file(tensors, weights)
    where = ("--config", ROOT / "configs/ecommerce.yaml", "--data", ROOT / "data", "--var", own_project.var)
    done = CliRunner().invoke(export, [*map(str, where), "--precision", "int8", *own_project.settings])
    assert done.exit_code == 1
    assert "No release was made" in done.stderr
    releases = own_project.var / "releases" / "ecommerce"
    assert [path.name for path in releases.iterdir() if path.name[0] != "."] == ["1"]
