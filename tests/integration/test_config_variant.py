"""A step's config variant, as an engine has one, goes in and out on a real server while callers ask.

Here it is the ONNX graph under an engine's name, on the CPU; and once for a GPU that is not there.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from instructrec_client import Client, InstructRecError
from marked_releases import Marker
from project import Project, new_project
from tritonclient import grpc

from serving.deploy import Deployment, deploy, roll_back
from serving.embedded import Endpoints
from serving.engines.fingerprint import FINGERPRINT_NAME, Fingerprint
from serving.errors import GateError, PublishError
from serving.files import sha256_of
from serving.gates.gates import Gates
from serving.gates.settings import GateSettings
from serving.healing import Healer
from serving.layout import Layout
from serving.live_repository import format_config, parse_config
from serving.manifest import files_below
from serving.releases import Release
from serving.server import Server

ENCODER, GRAPH, ENGINE = "ecommerce_encoder", "model.onnx", "model.plan"
KIND_GPU = 1


def with_variant(release: Release, *, kind: int | None = None) -> Release:
    """The release with its encoder's graph under an engine's name too, and the config variant that names it."""
    model, version = release.models / ENCODER, release.manifest.steps["encoder"].version
    config = parse_config((model / "config.pbtxt").read_text())
    config.default_model_filename = ENGINE
    if kind is not None:
        config.instance_group[0].kind = kind
    (model / "configs").mkdir()
    (model / "configs" / "gpu.pbtxt").write_text(format_config(config))
    shutil.copy2(model / str(version) / GRAPH, model / str(version) / ENGINE)
    Fingerprint("NVIDIA L4", "8.9", "550.54", "10.9.0").write(model / str(version) / FINGERPRINT_NAME)
    files = {name: sha256_of(release.path / name) for name in sorted(files_below(release.path))}
    release.manifest.model_copy(update={"files": files}).write(release.path)
    return Release(release.path)


def served(project: Project, version: int) -> Any:
    """The config by which the encoder is loaded."""
    with grpc.InferenceServerClient(project.grpc_url) as client:
        return client.get_model_config(ENCODER, str(version)).config


@contextmanager
def asking(project: Project) -> Iterator[None]:
    """Two callers who ask texts of different lengths without retries, and fail the test if any request fails."""
    stop, failed, answered = threading.Event(), [], []

    def ask(text: str) -> None:
        with Client(project.grpc_url, domain="ecommerce", retries=0, timeout=5.0) as client:
            while not stop.is_set():
                try:
                    answered.append(client.recommend(text, k=3).release)
                except InstructRecError as error:
                    failed.append(str(error))
                time.sleep(0.02)

    callers = [threading.Thread(target=ask, args=(text,)) for text in ("a blue shirt", "a warm winter jacket " * 8)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not failed
    assert answered


class Refusing(Gates):
    """Refuses a release once it is loaded."""

    def check_answers(self, *_: Any) -> None:
        raise GateError("it is too slow")


def test_a_variant_answers_where_it_can_and_the_graph_where_it_cannot(small: Project, tmp_path: Path) -> None:
    project = new_project(tmp_path / "var")
    layout = Layout(project.var)
    layout.releases("ecommerce").mkdir(parents=True)
    marker = Marker(Release(small.var / "releases" / "ecommerce" / "1"), layout.releases("ecommerce"))
    plain, fast, misfit = marker.make(1), with_variant(marker.make(2)), with_variant(marker.make(3), kind=KIND_GPU)
    endpoints = Endpoints(grpc_port=project.grpc_port, http_port=project.http_port, metrics_port=project.metrics_port)

    def publish(release: Release, gates: Gates | None = None) -> Deployment:
        return deploy(layout, release, endpoints, gates=gates)

    try:
        publish(plain)
        with asking(project):
            [said] = publish(fast).warnings
            assert f"{ENCODER} version 1, which has none" in said
            assert served(project, 2).default_model_filename != ENGINE
            assert publish(fast).warnings == ()
            assert served(project, 2).default_model_filename == ENGINE
            assert all(tensor.allow_ragged_batch for tensor in served(project, 2).input)

            with pytest.raises(PublishError, match=r"no GPUs are available.*release 2 still answers"):
                publish(misfit)
            assert served(project, 2).default_model_filename == ENGINE
            with pytest.raises(GateError, match="too slow; release 2 still answers"):
                publish(plain, Refusing(GateSettings(), force=True))
            assert served(project, 2).default_model_filename == ENGINE

        # Where a server starts, engines are held against the machine: this one was built elsewhere.
        state = Server(layout).state()
        assert state is not None
        psutil.Process(state.pid).kill()
        psutil.Process(state.pid).wait()
        [done] = Healer(layout).look()
        assert "server started afresh" in done
        assert served(project, 2).default_model_filename != ENGINE
        with asking(project):
            assert roll_back(layout, "ecommerce").release == 1
    finally:
        Server(layout).stop()
