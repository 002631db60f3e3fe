"""The embedded Triton: the real `tritonserver` out of the wheel `nvidia-pytriton`, without Docker."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from tritonclient.grpc import model_config_pb2

from .admin import restrictions
from .errors import PreflightError
from .files import remove
from .layout import Layout
from .process_tree import SHARED_MEMORY

SERVING = Path(__file__).parent
MINIMUM_SHARED_MEMORY_BYTES = 64 << 20
"""A Python stub takes 1 MB at first and grows by what its tensors need; a full /dev/shm kills stubs without a word."""
EXIT_TIMEOUT_SECONDS = 30
"""How long a stopping server waits for requests in flight."""
WARM_UP_ROWS = 8
"""The most rows of a warm-up sample on the embedded server."""
GPU_DRIVER = "libcuda.so.1"
"""The library by which everything reaches an NVIDIA GPU; it comes with the host's driver, never with a package."""

PYTHON_BASED_BACKENDS = frozenset(path.parent.name for path in (SERVING / "backends").glob("*/model.py"))
"""The native backends' names that our own answer for."""


def join_lengths(config: model_config_pb2.ModelConfig) -> None:
    """Let requests of all lengths share a batch of a model that a Python-based backend runs.

    Triton sends a batch off as soon as a request of another shape arrives. Our backends get requests one by one and
    group them themselves; the native ones could not take them, so that releases do not say this.
    """
    if config.backend in PYTHON_BASED_BACKENDS:
        for tensor in config.input:
            tensor.allow_ragged_batch = -1 in tensor.dims


def shorten_warm_up(config: model_config_pb2.ModelConfig) -> None:
    """Warm a CPU step up with a few rows instead of the largest batch.

    Our own steps compute a large batch in parts of a few hundred tokens, so eight rows touch all that 32 would; and a
    step that gets ready beside a live one takes a core away from callers for as long as it is warmed up. The native
    backends run a batch in one piece, so that releases do not say this.
    """
    for sample in config.model_warmup:
        sample.batch_size = min(sample.batch_size, WARM_UP_ROWS)


class Endpoints(BaseModel):
    """Where the server listens; loopback unless told otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=8001, ge=1, le=65535)
    http_port: int = Field(default=8000, ge=1, le=65535)
    metrics_port: int = Field(default=8002, ge=1, le=65535)

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC service, as a client on this machine reaches it."""
        return f"{self._reached}:{self.grpc_port}"

    @property
    def metrics_address(self) -> str:
        """`host:port` of the metrics, as a step on this machine reaches them."""
        return f"{self._reached}:{self.metrics_port}"

    @property
    def _reached(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Installation:
    """The parts of the wheel that are used.

    Attributes:
        server: the tritonserver executable.
        libraries: the folder of the shared libraries it links to.
        python_backend: the folder of Triton's Python backend.
        stub: the Python backend's stub for this interpreter.
    """

    server: Path
    libraries: Path
    python_backend: Path
    stub: Path

    @classmethod
    def find(cls) -> Installation:
        """Find the wheel's files without importing it.

        Raises:
            PreflightError: the wheel is not installed, or has no stub for this Python.
        """
        spec = importlib.util.find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise PreflightError("nvidia-pytriton, which carries tritonserver, is not installed; run `make setup`")
        package = Path(spec.origin).parent
        triton = package / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        installation = cls(
            server=triton / "bin" / "tritonserver",
            libraries=package.parent / "nvidia_pytriton.libs",
            python_backend=triton / "backends" / "python",
            stub=triton / "python_backend_stubs" / version / "triton_python_backend_stub",
        )
        if not installation.stub.is_file():
            raise PreflightError(
                f"tritonserver's wheel has no Python stub for Python {version}; use Python 3.10 to 3.13"
            )
        return installation

    def environment(self) -> dict[str, str]:
        """The environment of the server and its stubs.

        This interpreter, one thread a numeric library, nothing of the caller's Python set-up. Of the caller's libraries
        the GPU's driver alone, which some hosts mount where nothing else points.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        callers = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
        drivers = [folder for folder in callers if (Path(folder) / GPU_DRIVER).exists()]
        python_libraries = sysconfig.get_config_var("LIBDIR") or ""
        environment |= {
            "LD_LIBRARY_PATH": ":".join([str(self.libraries), python_libraries, *drivers]),
            # The stub embeds Python and finds its packages through the first `python3` on the path.
            "PATH": f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}",
            "PYTHONNOUSERSITE": "1",
            # Read by requirements/stub-python3.13.pth, installed on Python 3.13 only: its stub ignores PYTHONPATH.
            "INSTRUCTREC_STUB_PACKAGES": str(Path(sys.prefix) / "stub"),
            # Every stub would start a thread a core for each of these, on top of the encoder's own.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # glibc keeps an arena a thread; two are enough for steps that run one batch at a time.
            "MALLOC_ARENA_MAX": "2",
        }
        return openblas_kernels(Path("/proc/cpuinfo").read_text(encoding="utf-8")) | environment


def openblas_kernels(processors: str) -> dict[str, str]:
    """The variable that names the kernels of numpy's OpenBLAS, for a processor with the text of `/proc/cpuinfo`.

    OpenBLAS goes by model numbers. Numpy 1.26 carries 0.3.23, which does not know those from 2023 on (Emerald Rapids)
    and takes its SSE3 kernels for them: a product then takes three times as long.
    """
    flags = set(next((line for line in processors.splitlines() if line.startswith("flags")), "").split())
    if flags >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"}:
        return {"OPENBLAS_CORETYPE": "SkylakeX"}
    return {"OPENBLAS_CORETYPE": "Haswell"} if flags >= {"avx2", "fma"} else {}


def assemble_backends(installation: Installation, folder: Path) -> Path:
    """Lay out Triton's backend directory: its Python backend with the stub beside it, and our Python-based backends.

    Returns:
        The directory, made anew, so that it always is of this version, unless there is no room for that.

    Raises:
        PreflightError: it cannot be written, and there is none from before.
    """
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a start that was killed
        remove(left)
    staged = folder.with_name(f".{folder.name}-{os.getpid()}")
    ignore = shutil.ignore_patterns("__pycache__")
    try:
        shutil.copytree(installation.python_backend, staged / "python", ignore=ignore)
        shutil.copy2(installation.stub, staged / "python")
        for backend in (SERVING / "backends").iterdir():
            if (backend / "model.py").is_file():
                shutil.copytree(backend, staged / backend.name, ignore=ignore)
                shutil.copytree(SERVING / "steps", staged / backend.name / "steps", ignore=ignore)
                shutil.copytree(SERVING / "engines", staged / backend.name / "engines", ignore=ignore)
    except (shutil.Error, OSError) as error:
        remove(staged)
        if folder.is_dir():  # on a full disk, what served until now serves on
            return folder
        raise PreflightError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
    remove(folder)
    staged.rename(folder)
    return folder


def check_machine(endpoints: Endpoints, *, minimum_shared_memory_bytes: int = MINIMUM_SHARED_MEMORY_BYTES) -> None:
    """Look for what would make the server fail obscurely.

    Raises:
        PreflightError: a port is taken, the host is not this machine's, /dev/shm is too small, or Python's shared
            library is missing.
    """
    ports = {"GRPC_PORT": endpoints.grpc_port, "HTTP_PORT": endpoints.http_port, "METRICS_PORT": endpoints.metrics_port}
    if not endpoints.host:
        raise PreflightError("HOST is empty; name an address to listen on, as HOST=127.0.0.1")
    if len(set(ports.values())) < len(ports):
        raise PreflightError(
            f"two services cannot share a port: {', '.join(f'{name}={port}' for name, port in ports.items())}"
        )
    for name, port in ports.items():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((endpoints.host, port))
            except OSError as error:
                remedy = "name an address of this machine with HOST=<address>"
                if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                    remedy = f"choose another with {name}=<port>"
                raise PreflightError(f"cannot listen on {endpoints.host}:{port} ({error.strerror}); {remedy}") from None
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < minimum_shared_memory_bytes:
        raise PreflightError(
            f"{SHARED_MEMORY} has {free >> 20} MB free, {minimum_shared_memory_bytes >> 20} MB are needed; "
            "remove what other servers left there, or enlarge it "
            "(`mount -o remount,size=1g`, in a container `--shm-size=1g`)"
        )
    _check_python_library()


def _check_python_library() -> None:
    """Python 3.13's library comes with the wheel; the stubs of the others link to the interpreter's own."""
    if sys.version_info >= (3, 13):
        return
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        "/usr/lib/x86_64-linux-gnu",
        "/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    if not any(folder and (Path(folder) / name).is_file() for folder in folders):
        raise PreflightError(
            f"Triton's Python backend needs {name}, which this Python lacks; "
            "install your system's libpython package, or use a Python built with --enable-shared"
        )


def server_command(
    installation: Installation, layout: Layout, endpoints: Endpoints, models: list[str], key: str
) -> list[str]:
    """The command line of a server that loads the given models and, with each ensemble, its steps.

    Args:
        installation: of the server.
        layout: where everything lies.
        endpoints: where it is to listen.
        models: ensembles, and others that belong to none.
        key: opens what it does for its operator alone.
    """
    return [
        str(installation.server),
        f"--model-repository={layout.live}",
        f"--backend-directory={layout.backends}",
        "--model-control-mode=explicit",
        # Left on, it would rewrite what the configs say (`max_batch_size: 0` becomes 4).
        "--disable-auto-complete-config",
        # Where a model has configs/gpu.pbtxt it is read instead of config.pbtxt; deploy puts it there only on the
        # machine that its engine was built on.
        "--model-config-name=gpu",
        *(f"--load-model={model}" for model in models),
        f"--backend-config=python,shm-region-prefix-name={layout.shared_memory_prefix}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc_port}",
        f"--http-address={endpoints.host}",
        f"--http-port={endpoints.http_port}",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics_port}",
        *restrictions(key),
        # Requests in flight whose objects are kept for reuse; the default of 8 makes new ones all the time under load.
        "--grpc-infer-allocation-pool-size=64",
        f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
        # A CPU server: no pinned memory to hold for devices that are not there.
        "--pinned-memory-pool-byte-size=0",
    ]
