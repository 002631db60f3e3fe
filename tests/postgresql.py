"""A PostgreSQL cluster of one's own: in a temporary folder, on a free port, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MISSING = (
    "a real PostgreSQL is needed: `make setup` installs one (the wheel pgserver) for Python 3.10 to 3.12; "
    "for another, apt-get install postgresql (or your system's package)"
)


@dataclass(frozen=True)
class Cluster:
    """A running server with one user, one password and the databases that are asked for."""

    programs: Path
    folder: Path
    port: int
    password: str
    user: str | None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://instructrec:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> None:
        # Not Popen's own `user=`: it makes Python fork, which gRPC's threads, once running, do not survive.
        drop = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        as_user = [] if self.user is None else drop
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [*as_user, self.programs / program, *arguments],
                cwd=self.folder,
                env={"PATH": os.defpath, "PGPASSWORD": self.password, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the server inherits what it is given, and would keep a pipe open
                stderr=errors,
                check=False,
            )
            errors.seek(0)
            if done.returncode != 0:
                raise RuntimeError(f"{program} exited with {done.returncode}: {errors.read().decode()}")

    def create_database(self) -> str:
        """Make a database and return its URL."""
        name = f"feedback_{secrets.token_hex(4)}"
        self.run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=instructrec", name)
        return self.url(name)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; `immediate` is a crash as far as its files are concerned."""
        self.run("pg_ctl", "stop", "-w", "-D", f"{self.folder}/data", "-m", mode)


def _programs(folder: Path) -> Path:
    """The programs of the wheel `pgserver`, copied to where an unprivileged user may run them; else the system's."""
    wheel = importlib.util.find_spec("pgserver")
    if wheel is not None and wheel.origin is not None:
        package = Path(wheel.origin).parent  # its libraries lie beside it, and are looked for there
        for part in ("pgserver/pginstall", "pgserver.libs"):
            shutil.copytree(package.parent / part, folder / part, ignore=shutil.ignore_patterns("include"))
        return folder / "pgserver" / "pginstall" / "bin"
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for candidate in candidates:
        if (candidate / "initdb").is_file():
            return candidate
    raise RuntimeError(MISSING)


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; its package brings a user for it."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "daemon"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Yield a running cluster.

    Raises:
        RuntimeError: PostgreSQL is not installed; the message says how to.
    """
    user = _unprivileged_user()
    # Not below pytest's folder: nobody but root may enter that.
    folder = Path(tempfile.mkdtemp(prefix="instructrec-postgresql-"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    try:
        password = folder / "password"
        password.write_text(secrets.token_hex(8))
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(password, user)
        folder.chmod(0o755)
        made = Cluster(_programs(folder), folder, port, password.read_text(), user)
        made.run(
            "initdb",
            f"--pgdata={folder}/data",
            "--username=instructrec",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        )
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
