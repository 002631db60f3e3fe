"""One project folder with a server of its own, driven by `make` as a person would."""

import os
import random
import shutil
import socket
import subprocess
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tiny_encoders import save_encoder

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Project:
    """One `VAR` with ports of its own.

    Attributes:
        var: where all that is produced lies.
        grpc_port, http_port, metrics_port: where its server listens, when it runs.
        domain: what it recommends for.
        settings: what it changes of the domain's YAML.
        watch: whether a watcher mends its server ("yes"), or what was broken stays broken ("no").
    """

    var: Path
    grpc_port: int
    http_port: int
    metrics_port: int
    domain: str = "ecommerce"
    settings: tuple[str, ...] = ()
    watch: str = "no"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"127.0.0.1:{self.metrics_port}"

    def make(self, *arguments: str, check: bool = True, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """Run `make` with this project's variables, as a person would, and keep what it prints."""
        variables = {
            "VAR": self.var,
            "GRPC_PORT": self.grpc_port,
            "HTTP_PORT": self.http_port,
            "METRICS_PORT": self.metrics_port,
            "SET": " ".join(self.settings),
            "WATCH": self.watch,
        }
        # Under `make test`, this process has make's own variables in its environment; what we start must not get them.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = [
            "make",
            "--no-print-directory",
            *(f"{name}={value}" for name, value in variables.items()),
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done


def run_command(command: click.Command, *arguments: object) -> str:
    """Run one of the project's command lines in this process, which has torch loaded, and return what it prints."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    raised = "".join(traceback.format_exception(*result.exc_info)) if result.exc_info else ""
    assert result.exit_code == 0, f"{result.output}\n{raised}"
    return result.stdout


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, below those that the kernel gives to outgoing connections.

    A server that is killed and started again wants its port back; meanwhile a client might have got it for a connection
    of its own.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def new_project(var: Path) -> Project:
    return Project(var, *free_ports(3))


def with_encoder(project: Project, folder: Path, seed: int) -> Project:
    """The project with an encoder of its own."""
    folder.mkdir()
    settings = (
        f"encoder.name={save_encoder('bert', folder, seed=seed)}",
        "encoder.sha256=null",
        "encoder.max_length=64",
        "training.epochs=5",
        "export.verification_texts=48",
        "serving.length_buckets=[16,64]",
        # How little random weights know, and how busy this machine is, keeps no release back.
        "gates.accuracy_margin=1",
        "gates.ndcg_margin=1",
        "gates.latency_ratio=50",
    )
    return replace(project, settings=settings)


def copy_of(project: Project, var: Path) -> Project:
    """A second project with the same runs and releases, hard-linked, and no server."""
    copied = replace(new_project(var), settings=project.settings)
    for folder in ("releases", "runs"):
        shutil.copytree(project.var / folder, copied.var / folder, copy_function=os.link)
    return copied
