"""The embedded server's surroundings: the machine's checks, the environment, the command line, the backend folder."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from serving_helpers import content_of

from serving.embedded import (
    WARM_UP_ROWS,
    Endpoints,
    Installation,
    assemble_backends,
    check_machine,
    join_lengths,
    openblas_kernels,
    server_command,
    shorten_warm_up,
)
from serving.errors import PreflightError
from serving.layout import Layout
from serving.live_repository import parse_config


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    yield ports


def endpoints(ports: list[int]) -> Endpoints:
    return Endpoints(grpc_port=ports[0], http_port=ports[1], metrics_port=ports[2])


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A folder laid out as the wheel is, with a few bytes in it."""
    package = tmp_path / "pytriton"
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so", "stubs/triton_python_backend_stub"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    (package / "backends" / "python" / "__pycache__").mkdir()
    (package / "backends" / "python" / "__pycache__" / "old.pyc").write_text("old")
    return Installation(
        server=package / "bin" / "tritonserver",
        libraries=tmp_path / "nvidia_pytriton.libs",
        python_backend=package / "backends" / "python",
        stub=package / "stubs" / "triton_python_backend_stub",
    )


def test_free_ports_and_enough_memory_pass():
    with free_ports(3) as ports:
        check_machine(endpoints(ports), minimum_shared_memory_bytes=1)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_port_in_use_is_named_with_the_way_out(position):
    name = ("GRPC_PORT", "HTTP_PORT", "METRICS_PORT")[position]
    with free_ports(3) as ports, socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[position]))
        taken.listen()
        with pytest.raises(PreflightError, match=f"{ports[position]}.*{name}=") as caught:
            check_machine(endpoints(ports))
    assert "\n" not in caught.value.message


def test_a_port_taken_as_grpc_servers_take_theirs_is_found():
    """gRPC shares its port among its own sockets (SO_REUSEPORT); two servers on one port would take turns."""
    with free_ports(3) as ports, socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("0.0.0.0", ports[0]))  # noqa: S104 - the case in question
        taken.listen()
        with pytest.raises(PreflightError, match=str(ports[0])):
            check_machine(endpoints(ports))


def test_a_host_of_another_machine_is_one_clear_error():
    with free_ports(3) as ports, pytest.raises(PreflightError, match=r"192\.0\.2\.1.*HOST=") as caught:
        check_machine(endpoints(ports).model_copy(update={"host": "192.0.2.1"}))
    assert "GRPC_PORT=" not in caught.value.message


def test_a_host_that_is_none_is_not_blamed_on_the_port():
    with free_ports(3) as ports, pytest.raises(PreflightError, match=r"no-such-host.*HOST=") as caught:
        check_machine(endpoints(ports).model_copy(update={"host": "no-such-host.invalid"}))
    assert "GRPC_PORT=" not in caught.value.message


def test_one_port_for_two_services_is_refused_before_the_start():
    with free_ports(2) as (one, other), pytest.raises((PreflightError, ValidationError), match="port"):
        check_machine(Endpoints(grpc_port=one, http_port=one, metrics_port=other))


def test_an_empty_host_is_refused_before_the_start():
    """Bound as it is, it would open the server to the network."""
    with free_ports(3) as ports, pytest.raises((PreflightError, ValidationError), match=r"host|listen"):
        check_machine(Endpoints(host="", grpc_port=ports[0], http_port=ports[1], metrics_port=ports[2]))


def test_too_little_shared_memory_is_told_with_both_figures():
    with free_ports(3) as ports, pytest.raises(PreflightError, match=r"shm has \d+ MB free, 1099511627776 MB"):
        check_machine(endpoints(ports), minimum_shared_memory_bytes=1 << 60)


@pytest.mark.parametrize("port", [0, -1, 65_536, "http"])
@pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
def test_a_port_out_of_range_is_refused(name, port):
    with pytest.raises(ValidationError, match=name):
        Endpoints.model_validate({name: port})


def test_endpoints_listen_on_loopback_and_know_their_url():
    assert Endpoints().host == "127.0.0.1"
    assert Endpoints(grpc_port=9001).grpc_url == "127.0.0.1:9001"
    assert Endpoints(host="0.0.0.0").grpc_url == "127.0.0.1:8001"  # noqa: S104 - what clients here connect to
    assert Endpoints(host="example.org").grpc_url == "example.org:8001"
    with pytest.raises(ValidationError):
        Endpoints.model_validate({"port": 1})


def test_the_servers_environment_has_nothing_of_the_callers_python(installation, monkeypatch):
    for name in (
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONDONTWRITEBYTECODE",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
    ):
        monkeypatch.setenv(name, "/caller")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("PATH", "/caller/bin")
    environment = installation.environment()
    assert not [name for name, value in environment.items() if value == "/caller"]
    assert not {"PYTHONHOME", "LD_PRELOAD"} & set(environment)
    assert environment.get("PYTHONPATH") in (None, str(Path(sys.prefix) / "stub"))  # the project's own, for Python 3.13
    assert environment["LD_LIBRARY_PATH"].split(":")[0] == str(installation.libraries)
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/caller/bin"
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["PYTHONNOUSERSITE"] == "1"
    assert environment["KEPT"] == "kept"
    assert os.environ["LD_PRELOAD"] == "/caller"  # the caller's own is left alone


def test_the_gpus_driver_is_found_where_only_the_caller_says(installation, monkeypatch, tmp_path):
    """As on hosts that mount it into the container, and with a newer driver's compatibility package."""
    before = installation.environment()["LD_LIBRARY_PATH"]
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "libcuda.so.1").touch()
    (tmp_path / "conda").mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/conda::{tmp_path}/nvidia:{tmp_path}/gone")
    assert installation.environment()["LD_LIBRARY_PATH"] == f"{before}:{tmp_path}/nvidia"


@pytest.mark.parametrize(
    ("flags", "kernels"),
    [
        ("fpu sse2 avx2 fma avx512f avx512bw avx512dq avx512vl", {"OPENBLAS_CORETYPE": "SkylakeX"}),
        ("fpu sse2 avx2 fma avx512f", {"OPENBLAS_CORETYPE": "Haswell"}),
        ("fpu sse2", {}),
    ],
)
def test_numpys_blas_gets_kernels_for_what_the_processor_can_do(flags, kernels):
    assert openblas_kernels(f"processor\t: 0\nmodel\t\t: 207\nflags\t\t: {flags}\nbugs\t\t:\n\n") == kernels
    assert openblas_kernels("") == {}


def test_the_callers_own_choice_of_kernels_stays(installation, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    assert installation.environment()["OPENBLAS_CORETYPE"] == "Zen"


def test_the_command_line(installation, tmp_path):
    layout = Layout(tmp_path / "var")
    where = Endpoints(host="127.0.0.2", grpc_port=1, http_port=2, metrics_port=3)
    command = server_command(installation, layout, where, ["ecommerce", "news"], "0a1b")
    assert command[0] == str(installation.server)
    for flag in (
        f"--model-repository={layout.live}",
        f"--backend-directory={layout.backends}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--load-model=ecommerce",
        "--load-model=news",
        "--grpc-address=127.0.0.2",
        "--http-address=127.0.0.2",
        "--metrics-address=127.0.0.2",
        "--grpc-port=1",
        "--http-port=2",
        "--metrics-port=3",
        "--exit-timeout-secs=30",
        "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:admin-key=0a1b",
        "--http-restricted-api=model-repository,shared-memory,trace,logging:admin-key=0a1b",
        f"--backend-config=python,shm-region-prefix-name={layout.shared_memory_prefix}",
    ):
        assert command.count(flag) == 1, flag


def test_two_layouts_do_not_share_a_shared_memory_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Layout(Path("var")).var == tmp_path / "var"
    assert Layout(Path("var")).shared_memory_prefix == Layout(tmp_path / "var").shared_memory_prefix
    assert Layout(Path("var")).shared_memory_prefix != Layout(Path("var2")).shared_memory_prefix


def test_a_var_is_the_same_however_it_is_reached(tmp_path):
    """The server's processes are told by a name that is made of the path."""
    (tmp_path / "disk" / "var").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for path in (tmp_path / "link" / "var", tmp_path / "disk" / ".." / "disk" / "var"):
        assert Layout(path) == Layout(tmp_path / "disk" / "var")
        assert Layout(path).shared_memory_prefix == Layout(tmp_path / "disk" / "var").shared_memory_prefix


def test_backends_are_laid_out_as_triton_wants_them(installation, tmp_path):
    folder = tmp_path / "cache" / "backends"
    folder.mkdir(parents=True)
    (folder / "stale").write_text("of an older version")
    for _ in range(2):
        assert assemble_backends(installation, folder) == folder
        files = set(content_of(folder))
        assert {"python/libtriton_python.so", "python/triton_python_backend_stub", "onnxruntime/model.py"} <= files
        assert {"onnxruntime/steps/batching.py", "onnxruntime/steps/invalid_request.py"} <= files
        assert "stale" not in files
        assert not [name for name in files if "__pycache__" in name]
        assert [path.name for path in folder.parent.iterdir()] == ["backends"]


def test_models_of_our_backends_take_requests_of_all_lengths_together():
    """The native backends could not; so it is said of the live repository, never in a release."""
    lines = 'input { name: "ids" dims: [-1] } input { name: "vector" dims: [384] }'
    for backend, ragged in [("onnxruntime", [True, False]), ("openvino", [True, False]), ("python", [False, False])]:
        config = parse_config(f'backend: "{backend}" {lines}')
        join_lengths(config)
        assert [tensor.allow_ragged_batch for tensor in config.input] == ragged, backend


def test_a_warm_up_is_no_longer_than_it_has_to_be():
    config = parse_config('model_warmup { name: "one" batch_size: 1 } model_warmup { name: "most" batch_size: 32 }')
    shorten_warm_up(config)
    assert [sample.batch_size for sample in config.model_warmup] == [1, WARM_UP_ROWS]
