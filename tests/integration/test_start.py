"""Starting the server again, as after a reboot, and the verbs that need one: what was live is live, nothing else."""

import subprocess
from pathlib import Path

import pytest
from instructrec_client import Client
from project import ROOT, Project

from serving import process_tree
from serving.layout import Layout


def answers(project: Project, number: int) -> bool:
    with Client(project.grpc_url, timeout=30.0) as client:
        return client.recommend("a blue shirt").release == str(number)


def kill(project: Project, part: str) -> None:
    tree = process_tree.processes(Layout(project.var).shared_memory_prefix)
    next(one for one in tree if part in " ".join(one.cmdline()[:2])).kill()


def test_what_was_live_is_live_again(own_two_releases: Project) -> None:
    project = own_two_releases
    for number in (1, 2):
        project.make("deploy", f"RELEASE={number}")
    assert "`make rollback` once more returns to 2" in project.make("rollback").stdout
    project.make("stop")
    assert "run `make start`" in project.make("status", check=False).stderr
    assert "ecommerce release 1 answers at" in project.make("start").stdout
    assert answers(project, 1)
    assert "runs already" in project.make("start").stdout

    asked = ["make", "--no-print-directory", "recommend", f"VAR={project.var}"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "sku-" in told, "no port was given, and the server is asked where it listens"

    project.make("canary", "RELEASE=2", "SHARE=0.5")
    project.make("stop", "start")
    status = project.make("status").stdout
    assert "release 1 answers a real instruction" in status
    assert "release 2 is the canary, for 50 % of people, answers in" in status
    kill(project, "tritonserver")
    assert "server started" in project.make("running").stdout
    assert answers(project, 1)

    # `status` fails, and the newest release does not go live by that.
    kill(project, "live/feedback/")
    assert project.make("status", check=False).returncode != 0
    assert "runs already" in project.make("running").stdout
    assert answers(project, 1)


@pytest.mark.parametrize("verb", ["start", "recommend"])
def test_make_hands_on_only_the_endpoints_that_were_given(tmp_path: Path, verb: str) -> None:
    def printed(*given: str) -> str:
        command = ["make", "-n", verb, f"VAR={tmp_path}", *given]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert not any(option in printed() for option in ("--host", "--grpc-port", "--http-port", "--metrics-port"))
    told = printed("GRPC_PORT=9001", "HOST=0.0.0.0")
    assert "--host 0.0.0.0" in told
    assert "--grpc-port 9001" in told
    assert "--http-port" not in told
