"""Whoever reaches a server's ports may ask it for recommendations, and has no way to make it run their code."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from instructrec_client import Client
from project import Project
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.admin import HEADER, admin_client, ensure_key
from serving.healing import Healer
from serving.layout import Layout

MODEL = "import pathlib\nclass TritonPythonModel:\n    pathlib.Path({path!r}).touch()\n    def execute(self, _): ...\n"


def by_grpc(folder: Path) -> dict[str, Callable[[grpc.InferenceServerClient], Any]]:
    """What only the operator may do, by gRPC."""
    code = MODEL.format(path=str(folder / "ran"))
    config = json.dumps({"backend": "python", "max_batch_size": 0})
    return {
        "load code": lambda client: client.load_model("ours", config=config, files={"file:1/model.py": code.encode()}),
        "load": lambda client: client.load_model("ecommerce"),
        "unload": lambda client: client.unload_model("ecommerce"),
        "index": lambda client: client.get_model_repository_index(),
        "memory": lambda client: client.register_system_shared_memory("ours", "/ours", 8),
        "memory status": lambda client: client.get_system_shared_memory_status(),
        "forget memory": lambda client: client.unregister_system_shared_memory(),
        "GPU memory": lambda client: client.register_cuda_shared_memory("ours", b"AAAA", 0, 8),
        "log": lambda client: client.update_log_settings({"log_file": str(folder / "log")}),
        "log settings": lambda client: client.get_log_settings(),
        "trace": lambda client: client.update_trace_settings(settings={"trace_file": str(folder / "trace")}),
        "trace a model": lambda client: client.update_trace_settings("ecommerce", {"trace_level": ["TIMESTAMPS"]}),
    }


BY_HTTP = {
    "repository/index": b"{}",
    "repository/models/ours/load": b"{}",
    "repository/models/ecommerce/unload": b"{}",
    "systemsharedmemory/region/ours/register": b'{"key": "/ours", "offset": 0, "byte_size": 8}',
    "systemsharedmemory/status": None,
    "cudasharedmemory/region/ours/register": b'{"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 8}',
    "logging": b'{"log_verbose_level": 1}',
    "trace/setting": b'{"trace_level": ["TIMESTAMPS"]}',
    "models/ecommerce/trace/setting": b'{"trace_level": ["TIMESTAMPS"]}',
}


def by_http(project: Project, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(project.http_url, timeout=10)
    connection.request("GET" if body is None else "POST", f"/v2/{path}", body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("header", ["no", "a wrong"])
def test_without_the_key_the_operators_part_is_refused(own_server: Project, tmp_path: Path, header: str) -> None:
    asked = by_grpc(tmp_path)
    for name, ask in asked.items():
        with grpc.InferenceServerClient(own_server.grpc_url) as client:
            if header == "a wrong":
                client.register_plugin(lambda request: request.headers.update({f"triton-grpc-protocol-{HEADER}": "x"}))
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                pytest.fail(f"{name}: {ask(client)}")
    headers = {HEADER: "x"} if header == "a wrong" else {}
    statuses = {path: by_http(own_server, path, body, headers) for path, body in BY_HTTP.items()}
    assert statuses == dict.fromkeys(BY_HTTP, 403)
    assert list(tmp_path.iterdir()) == [], "a caller's code ran, or a caller's file was written"


def test_without_the_key_callers_are_answered(own_server: Project) -> None:
    with Client(own_server.grpc_url, domain="ecommerce") as client:
        assert client.recommend("a blue shirt", k=3)
    with grpc.InferenceServerClient(own_server.grpc_url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("ecommerce")
        assert client.get_server_metadata().name == "triton"
        assert client.get_model_config("ecommerce").config.name == "ecommerce"
        assert client.get_inference_statistics("ecommerce").model_stats


def test_with_the_key_the_operators_part_is_done(own_server: Project) -> None:
    layout = Layout(own_server.var)
    with admin_client(layout, own_server.grpc_url) as client:
        assert {model.name for model in client.get_model_repository_index().models} >= {"ecommerce", "feedback"}
        assert client.get_log_settings().settings
    assert by_http(own_server, "repository/index", b"{}", {HEADER: ensure_key(layout)}) == 200


def test_nothing_but_its_file_holds_the_key(own_server: Project) -> None:
    layout = Layout(own_server.var)
    key = layout.admin_key.read_text().strip()
    said = "".join(own_server.make(verb).stdout for verb in ("status", "logs"))
    assert key not in said
    files = [path for path in layout.var.rglob("*") if path.is_file()]
    assert [path for path in files if key.encode() in path.read_bytes()] == [layout.admin_key]


def test_a_server_started_again_goes_by_the_same_key(own_server: Project) -> None:
    layout = Layout(own_server.var)
    key = layout.admin_key.read_bytes()
    own_server.make("stop")
    own_server.make("deploy")
    assert layout.admin_key.read_bytes() == key
    with admin_client(layout, own_server.grpc_url) as client:
        assert client.get_model_repository_index().models


def test_a_lost_key_is_replaced_by_the_watcher(own_server: Project) -> None:
    layout = Layout(own_server.var)
    before = layout.admin_key.read_bytes()
    layout.admin_key.unlink()
    healer = Healer(layout)
    assert healer.look() == []
    [done] = healer.look()
    assert "restricted" in done
    assert layout.admin_key.read_bytes() != before
    with admin_client(layout, own_server.grpc_url) as client:
        assert client.get_model_repository_index().models
