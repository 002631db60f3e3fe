"""Starting, stopping, and what is left after things were killed."""

import fcntl
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from project import Project, copy_of
from wire import request, send_together

from serving import process_tree
from serving.embedded import Endpoints, check_machine
from serving.errors import PreflightError
from serving.layout import Layout


def tree(project: Project) -> list[psutil.Process]:
    return process_tree.processes(Layout(project.var).shared_memory_prefix)


def tritonserver(project: Project) -> psutil.Process:
    return next(process for process in tree(project) if "tritonserver" in process.cmdline()[0])


def stub(project: Project, step: str) -> psutil.Process:
    return next(
        process
        for process in tree(project)
        if f"_{step}/" in " ".join(process.cmdline()) and "stub" in process.cmdline()[0]
    )


def nothing_is_left(project: Project) -> bool:
    return not tree(project) and not process_tree.shared_memory_regions(Layout(project.var).shared_memory_prefix)


def one_error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command explains itself with; make adds its own."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in done.stdout
    return lines[0]


@pytest.fixture(scope="module")
def harmed(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose server the tests stop and kill; each deploys first, which is quick where the server runs."""
    project = copy_of(small, tmp_path_factory.mktemp("harmed") / "var")
    yield project
    project.make("stop", check=False)


def test_stop_leaves_nothing_and_deploy_starts_again(own_server: Project, harmed: Project) -> None:
    assert "answers at" in harmed.make("deploy").stdout
    assert "stopped" in harmed.make("stop").stdout
    assert nothing_is_left(harmed)
    assert "answers a real instruction" in own_server.make("status").stdout, "another project's server was harmed"
    assert "no server was running" in harmed.make("stop").stdout
    one_error_line(harmed.make("status", check=False))
    assert "answers at" in harmed.make("deploy").stdout


def test_stop_answers_what_is_in_flight(harmed: Project) -> None:
    harmed.make("deploy")
    requests = [request([b"a blue shirt for the office " * 500] * 16) for _ in range(48)]  # seconds of work
    answers = []
    sender = threading.Thread(target=lambda: answers.extend(send_together(harmed.grpc_url, "ecommerce", requests)))
    sender.start()
    time.sleep(0.4)  # some are in flight, some answered
    assert sender.is_alive()
    stopping = harmed.make("stop")
    sender.join()
    assert "stopped" in stopping.stdout
    statuses = {answer.status for answer in answers}
    assert statuses == {"OK"}, statuses


def test_deploy_cleans_up_after_a_killed_server_by_itself(harmed: Project) -> None:
    harmed.make("deploy")
    tritonserver(harmed).kill()
    assert "answers at" in harmed.make("deploy").stdout
    assert len(tree(harmed)) == 6


def test_stop_after_a_killed_stub_leaves_nothing(harmed: Project) -> None:
    harmed.make("deploy")
    stub(harmed, "topk").kill()
    assert "does not answer" in one_error_line(harmed.make("status", check=False))
    harmed.make("stop")
    assert nothing_is_left(harmed)


def test_stop_after_a_killed_server_leaves_nothing_of_a_stub_that_hangs(harmed: Project) -> None:
    harmed.make("deploy")
    stub(harmed, "encoder").suspend()
    tritonserver(harmed).kill()
    harmed.make("stop")
    assert nothing_is_left(harmed)


def test_a_port_in_use_is_one_clear_line(own_project: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", own_project.http_port))
        other.listen()
        message = one_error_line(own_project.make("deploy", check=False))
    assert str(own_project.http_port) in message
    assert "HTTP_PORT=" in message
    assert nothing_is_left(own_project)


def test_too_little_shared_memory_is_one_clear_line() -> None:
    with pytest.raises(PreflightError, match=r"/dev/shm has .* MB free.*shm-size"):
        check_machine(Endpoints(grpc_port=1, http_port=2, metrics_port=3), minimum_shared_memory_bytes=1 << 60)


def test_a_missing_release_is_one_clear_line(own_project: Project) -> None:
    assert "there is no release 9" in one_error_line(own_project.make("deploy", "RELEASE=9", check=False))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "add"])
def test_a_damaged_release_never_goes_live(own_server: Project, damage: str) -> None:
    releases = own_server.var / "releases" / "ecommerce"
    shutil.rmtree(releases / "2", ignore_errors=True)
    shutil.copytree(releases / "1", releases / "2")
    manifest = releases / "2" / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"release":1', '"release":2').replace('"release": 1', '"release": 2')
    )
    graph = next((releases / "2" / "models" / "ecommerce_encoder").glob("*/model.onnx"))
    content = graph.read_bytes()
    match damage:
        case "truncate":
            graph.write_bytes(content[: len(content) // 2])
        case "flip":
            graph.write_bytes(content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:])
        case "remove":
            graph.unlink()
        case "add":
            (graph.parent / "extra").write_text("not in the manifest")
    message = one_error_line(own_server.make("deploy", check=False))
    assert "models/ecommerce_encoder" in message
    assert "release 1 answers" in own_server.make("status").stdout


def test_a_second_command_at_the_same_time_says_so(own_server: Project) -> None:
    own_project = own_server
    with (own_project.var / "serving.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "at work" in one_error_line(own_project.make("stop", check=False))
    assert "release 1 answers" in own_project.make("status").stdout


def test_a_server_survives_the_command_that_started_it(own_server: Project) -> None:
    leader = tritonserver(own_server)
    assert os.getpgid(leader.pid) == leader.pid
    assert os.getsid(leader.pid) != os.getsid(0)
