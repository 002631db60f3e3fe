"""Whatever happens to a publish or to the machine under it, one whole release answers, and the next publish works."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from project import Project, new_project
from publish_crashes import Crashes
from release_askers import Askers

from serving import process_tree
from serving.admin import admin_client
from serving.deploy import deploy
from serving.embedded import Endpoints
from serving.errors import PublishError
from serving.files import sha256_of
from serving.healing import Healer, StubPlace, find_stubs
from serving.journal import Journal
from serving.live_repository import LiveRepository
from serving.releases import Release, ReleaseStore


@pytest.fixture(scope="module")
def crashes(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    """A running server with a release that is marked, and callers that know its answers; on a small disk if it may."""
    base, var = Release(small.var / "releases" / small.domain / "1"), tmp_path_factory.mktemp("crashes") / "var"
    var.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(var)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    made = Crashes(new_project(var), base)
    try:
        made.publish(made.new_release())
        made.askers.learn()
        yield made
    finally:
        made.project.make("stop", check=False)
        if mounted:
            subprocess.run(["umount", "-l", str(var)], check=True)


def answers(crashes: Crashes) -> str:
    """The one release that answers, whole; the callers fail otherwise."""
    asking = Askers(crashes.project.grpc_url, expected=crashes.askers.expected)
    with asking.asking(threads=1, tasks=1):
        asking.wait_for_answers(20)
    assert not asking.failures()
    [release] = {one.release for one in asking.asked}
    return release


def endpoints(project: Project) -> Endpoints:
    return Endpoints(grpc_port=project.grpc_port, http_port=project.http_port, metrics_port=project.metrics_port)


def test_publishers_killed_at_random_instants(crashes: Crashes) -> None:
    """A short form of publish_crashes.py, which does this sixty times and more."""
    crashes.publish(crashes.new_release())
    with crashes.askers.asking(threads=2, tasks=2):
        for _ in range(3):
            start = len(crashes.askers.asked)
            crashes.kill_while_publishing(with_server=False)
            crashes.publish(crashes.new_release())
            assert not crashes.askers.failures(start)
    assert answers(crashes) == str(crashes.number)


@pytest.mark.parametrize("killed", ["before the switch", "before the load", "before the journal"])
def test_the_watcher_ends_a_killed_publish(crashes: Crashes, killed: str) -> None:
    layout, repository = crashes.layout, LiveRepository(crashes.layout.live)
    before = answers(crashes)
    release = ReleaseStore(layout.releases("ecommerce")).open(crashes.new_release())
    repository.stage(release)
    with admin_client(crashes.layout, crashes.project.grpc_url) as client:
        for step in release.manifest.steps.values():
            client.load_model(step.model)
        if killed != "before the switch":
            repository.switch(release)
        if killed == "before the journal":
            client.load_model("ecommerce")
    [done] = Healer(layout).look()
    kept = killed == "before the journal"
    assert f"ecommerce release {release.number} was killed" in done
    assert answers(crashes) == (str(release.number) if kept else before)
    last = Journal(layout.journal("ecommerce")).publications()[-1]
    assert (last.release, last.verb) == ((release.number, "recovered") if kept else (int(before), "deploy"))
    assert Healer(layout).look() == []


def head_stubs(crashes: Crashes) -> list[psutil.Process]:
    tree = process_tree.processes(crashes.layout.shared_memory_prefix)
    return [process for process in tree if "/ecommerce_head/" in " ".join(process.info["cmdline"][:2])]


def running_heads(crashes: Crashes) -> set[StubPlace]:
    return {stub for stub in find_stubs(crashes.layout).running if stub.model == "ecommerce_head"}


def test_all_dead_versions_of_a_step_are_mended_at_once(crashes: Crashes) -> None:
    """The live release's and that of the one before, which a rollback goes to."""
    crashes.publish(crashes.new_release())
    deadline = time.monotonic() + 30
    while len(dead := head_stubs(crashes)) > 2 and time.monotonic() < deadline:  # older ones are still being unloaded
        time.sleep(0.1)
    before = running_heads(crashes)
    for process in dead:
        process.kill()
    done = Healer(crashes.layout).look()
    assert len(done) == len(dead) == 2
    assert all("ecommerce_head" in line and "is dead: loaded anew" in line for line in done)
    assert running_heads(crashes) == before
    assert answers(crashes) == str(crashes.number)


RAISES = "raise RuntimeError('this release is broken')\n"
FAILS = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("broken")) for _ in requests]
"""


def broken_release(crashes: Crashes, content: str = RAISES) -> Release:
    """Its files are what its manifest says, and its top-k step cannot be loaded, or does not answer."""
    made = crashes.marker.make(crashes.new_number(), encoder=crashes.encoder)
    code = made.models / "ecommerce_topk" / str(made.number) / "model.py"
    code.unlink()
    code.write_text(content)
    name, digest = code.relative_to(made.path).as_posix(), sha256_of(code)
    made.manifest.model_copy(update={"files": {**made.manifest.files, name: digest}}).write(made.path)
    return Release(made.path)


def test_a_release_that_does_not_answer_is_never_switched_to(crashes: Crashes) -> None:
    before = answers(crashes)
    broken = broken_release(crashes, FAILS)
    asking = Askers(crashes.project.grpc_url, expected=crashes.askers.expected)
    with (
        asking.asking(threads=1, tasks=1),
        pytest.raises(PublishError, match=f"ecommerce_candidate does not answer: .*broken; release {before} still"),
    ):
        deploy(crashes.layout, broken, endpoints(crashes.project), gates=None)
    assert not asking.failures()
    assert answers(crashes) == before
    shutil.rmtree(broken.path)


def test_a_server_does_not_stumble_over_what_a_killed_publish_left(crashes: Crashes) -> None:
    """It is killed with the publisher, while a release that cannot be loaded is staged."""
    before, repository = answers(crashes), LiveRepository(crashes.layout.live)
    broken = broken_release(crashes)
    repository.stage(broken)
    repository.switch(broken)
    crashes.kill_server()
    assert len(Healer(crashes.layout).look()) == 2  # taken back, and started
    assert answers(crashes) == before
    shutil.rmtree(broken.path)


def test_a_truncated_and_a_changed_file_and_an_unreadable_manifest(crashes: Crashes) -> None:
    before = answers(crashes)
    for damage in ("truncate", "change", "manifest"):
        made = crashes.marker.make(crashes.new_number(), encoder=crashes.encoder)
        graph = made.models / "ecommerce_head" / str(made.number) / "model.onnx"
        content = graph.read_bytes()
        if damage == "manifest":
            (made.path / "manifest.json").write_bytes(b"\xff{half of it")
        else:
            graph.write_bytes(content[:-9] if damage == "truncate" else content[:-9] + b"something")
        process = crashes.publisher(made.number, started=False)
        errors = process.communicate(timeout=60)[1].strip().splitlines()
        assert process.returncode == 1
        assert len(errors) == 1, errors
        assert ("manifest.json" if damage == "manifest" else "does not have the sha256") in errors[0]
        shutil.rmtree(made.path)
    assert answers(crashes) == before


def test_the_watcher_says_when_feedback_cannot_be_stored(crashes: Crashes) -> None:
    healer = Healer(crashes.layout)
    with admin_client(crashes.layout, crashes.project.grpc_url) as client:
        client.unload_model("feedback")
        [said] = healer.look()
        assert "takes no events" in said
        assert healer.look() == []
        client.load_model("feedback")
        assert healer.look() == ["feedback can be stored again"]


def test_two_publishes_at_once(crashes: Crashes) -> None:
    """One goes live; the other says that it has to wait, unless it came after."""
    both = [crashes.publisher(crashes.new_release(), started=False) for _ in range(2)]
    said = [(*process.communicate(timeout=120), process.returncode) for process in both]
    assert 0 in {code for *_, code in said}, said
    for _, errors, code in said:
        assert code == 0 or "another deploy or stop is at work" in errors
    assert answers(crashes) in {str(crashes.number), str(crashes.number - 1)}
    assert LiveRepository(crashes.layout.live).marks.all() == []


@contextmanager
def room_for(var: Path, size: int) -> Iterator[None]:
    """Fill the disk that a VAR lies on, but for so many bytes."""
    ballast = var / "ballast"
    with ballast.open("wb") as stream:
        left = shutil.disk_usage(var).free - size
        while left > 0:
            left -= stream.write(bytes(min(left, 1 << 20)))
    try:
        yield
    finally:
        ballast.unlink()


def test_a_full_disk(crashes: Crashes) -> None:
    """A real one. The publish fails at another place with each bit of room, the release before answers on."""
    if not os.path.ismount(crashes.project.var):
        pytest.skip("no file system of a set size can be mounted here, which takes root")
    before = answers(crashes)
    number = crashes.new_release()
    number = number if number % 2 == 0 else crashes.new_release()  # with an encoder of its own, which needs the room
    release = ReleaseStore(crashes.layout.releases("ecommerce")).open(number)
    needed = sum(path.stat().st_size for path in release.models.rglob("*") if path.is_file())
    for share in (0.0, 0.02, 0.3, 0.6, 0.9):
        with room_for(crashes.project.var, int(share * needed)):
            with pytest.raises(PublishError, match="No space left on device"):
                deploy(crashes.layout, release, endpoints(crashes.project), gates=None)
            assert answers(crashes) == before
    with room_for(crashes.project.var, 0):
        crashes.kill_server()
        assert "server started afresh" in Healer(crashes.layout).look()[-1]
        assert answers(crashes) == before
    assert deploy(crashes.layout, release, endpoints(crashes.project), gates=None).answer.release == str(release.number)
    assert answers(crashes) == str(release.number)
