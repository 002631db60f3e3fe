"""Kill the command that publishes at random instants, while callers ask, and look at what answers then.

The proof of docs/serving.md, "Publishing", from the project's folder:

    PYTHONPATH=tests:tests/integration .venv/bin/python tests/integration/publish_crashes.py --instants 60

At every instant the publishing process is killed with -9; at every fifth the server is killed as well, so that it has
to come up from the live repository as it was left. Then what answers must be one whole release, and the next publish
must work. No request may fail but while the server is down.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from marked_releases import Marker
from project import ROOT, Project, new_project, with_encoder
from release_askers import Askers

from serving import process_tree
from serving.layout import Layout
from serving.releases import Release


def serving_command(project: Project, *arguments: str) -> list[str]:
    """What `make deploy` runs, without make, which would not die with it."""
    ports = ("--grpc-port", project.grpc_port, "--http-port", project.http_port, "--metrics-port", project.metrics_port)
    command = [sys.executable, "-m", "serving", *arguments, "--var", project.var]
    return [str(part) for part in (*command, *(ports if arguments[0] == "deploy" else ()))]


@dataclass
class Crashes:
    """A server under callers, and a publisher that is killed.

    Attributes:
        project: whose server it is; it has a `VAR` without releases.
        base: what its releases are made of.
        askers: who asks.
        counts: what happened.
    """

    project: Project
    base: Release
    chooser: random.Random = field(default_factory=random.Random)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        store = self.layout.releases(self.project.domain)
        store.mkdir(parents=True, exist_ok=True)
        self.marker = Marker(self.base, store)
        self.askers = Askers(self.project.grpc_url, pause=0.05)
        self.number = 0
        self.encoder = 1
        self.durations = [1.0]

    @property
    def layout(self) -> Layout:
        return Layout(self.project.var)

    def new_release(self) -> int:
        """Every second one with an encoder of its own."""
        number = self.new_number()
        if number % 2 == 0:
            self.encoder = number
        return self.marker.make(number, encoder=self.encoder).number

    def new_number(self) -> int:
        """Numbers are never used twice."""
        self.number += 1
        return self.number

    def some_release(self) -> int:
        """Mostly a new one; at times one from before, whose folders may be gone from the live repository."""
        return self.new_release() if self.chooser.random() < 0.7 else self.chooser.randint(1, self.number)

    def publisher(self, number: int, *, started: bool = True) -> subprocess.Popen[str]:
        """Start a publish, and return when it is past its imports, unless told otherwise."""
        process = subprocess.Popen(
            [*serving_command(self.project, "deploy"), "--release", str(number), "--no-watch", "--force"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        if started:
            process.stdout.readline()
        return process

    def publish(self, number: int) -> None:
        """Publish to the end."""
        process = self.publisher(number)
        began = time.monotonic()
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"the publish of {number} after a crash failed: {output}{errors}"
        self.durations.append(time.monotonic() - began)
        assert f"release {number} answers" in output, output

    def kill_while_publishing(self, *, with_server: bool) -> None:
        while True:
            process = self.publisher(self.some_release())
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=self.chooser.uniform(0, statistics.median(self.durations[2:] or self.durations)))
            process.kill()
            process.communicate()
            if process.returncode:
                break  # else it was done before
        assert process.returncode == -signal.SIGKILL, process.returncode
        self.counts["publisher killed"] += 1
        if with_server:
            self._restart()
        start = len(self.askers.asked)
        self.askers.wait_for_answers(20)
        failures = self.askers.failures(start)
        if with_server:  # callers wait out the start of the server
            failures = Counter({what: count for what, count in failures.items() if what.startswith("mixed")})
        assert not failures, failures

    def _restart(self) -> None:
        """Kill the server, and do what the watcher does every two seconds."""
        self.kill_server()
        done = subprocess.run(
            [sys.executable, "-c", RESTART, str(self.layout.var)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def kill_server(self) -> None:
        self.counts["server killed"] += 1
        tree = process_tree.processes(self.layout.shared_memory_prefix)
        server = next(one for one in tree if "tritonserver" in one.cmdline()[0])
        server.kill()
        server.wait(10)

    def run(self, instants: int, *, server_every: int = 5) -> None:
        """Kill so often, publish after each, and hold all that was answered against what must be."""
        self.publish(self.new_release())
        self.askers.learn()
        with self.askers.asking(threads=2, tasks=2):
            self.publish(self.new_release())
            for instant in range(instants):
                whole = len(self.askers.asked)
                with_server = bool(server_every) and instant % server_every == server_every - 1
                self.kill_while_publishing(with_server=with_server)
                if self.chooser.random() < 0.7:  # else the next one is killed as well
                    self.publish(self.some_release())
                failures = self.askers.failures(whole)
                if not with_server:
                    assert not failures, failures
                assert not [one for one in failures if one.startswith("mixed")], failures
            self.publish(self.new_release())
            self.askers.wait_for_answers(20)

    def report(self) -> str:
        releases = {one.release for one in self.askers.asked if not one.failure}
        while_down = sum(self.askers.failures().values())
        return (
            f"{dict(self.counts)}; {len(self.askers.asked)} requests, answers of {len(releases)} of {self.number} "
            f"releases, every one whole; {while_down} failed, all while the server was down"
        )


RESTART = """
import sys
from pathlib import Path
from serving.healing import Healer
from serving.layout import Layout
print(Healer(Layout(Path(sys.argv[1]))).look())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instants", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = with_encoder(new_project(Path(folder) / "small"), Path(folder) / "encoder", seed=0)
        small.make("export", "PRECISION=fp32")
        crashes = Crashes(
            new_project(Path(folder) / "var"),
            Release(small.var / "releases" / small.domain / "1"),
            random.Random(options.seed),  # noqa: S311
        )
        try:
            crashes.run(options.instants)
        except BaseException:
            log = crashes.layout.server_log
            print(f"seed {options.seed}: {crashes.counts}\n{log.read_text()[-3000:] if log.is_file() else ''}")
            raise
        finally:
            subprocess.run(serving_command(crashes.project, "stop"), cwd=ROOT, check=False)
        print(f"{options.instants} instants (seed {options.seed}): {crashes.report()}")


if __name__ == "__main__":
    main()
