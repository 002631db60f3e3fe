"""A hundred releases one after the other under callers: every answer is whole, memory stays, latency hardly moves.

The proof of docs/serving.md, "Measured: a hundred releases", from the project's folder:

    PYTHONPATH=tests:tests/integration .venv/bin/python tests/integration/release_soak.py --releases 100

The releases are made of one real release of the sample catalogue (or of --base), so that answers prove what produced
them (marked_releases.py); every fourth has an encoder of its own, the others share it. Sixteen callers, half of them
asyncio, run in a process of their own and never retry.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from instructrec_client import Recommendations
from marked_releases import Marker
from project import Project, new_project
from release_askers import Asked, Askers

from serving import process_tree
from serving.deploy import deploy, roll_back
from serving.embedded import Endpoints
from serving.layout import Layout
from serving.releases import Release
from serving.server import Server

WARM_UP = 8
"""Releases after which memory counts."""


def ask(url: str, pause: float, expected: dict[str, Recommendations], callers: int, pipe: Connection) -> None:
    """In a process of its own: ask until told to stop, then hand over what was seen."""
    askers = Askers(url, pause, expected)
    with askers.asking(threads=callers - callers // 2, tasks=callers // 2):
        pipe.send("asking")
        pipe.recv()
    pipe.send(askers.asked)


@dataclass
class Soak:
    """A server that gets release after release.

    Attributes:
        project: whose server it is.
        base: what the releases are made of.
        quiet_seconds: between a publish and the next.
    """

    project: Project
    base: Release
    quiet_seconds: float = 3.0
    memory: list[dict[str, int]] = field(default_factory=list)
    publishes: list[tuple[float, float]] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout(self.project.var)
        store = self.layout.releases(self.project.domain)
        store.mkdir(parents=True)
        self.marker = Marker(self.base, store)
        ports = (self.project.grpc_port, self.project.http_port, self.project.metrics_port)
        self.endpoints = Endpoints(grpc_port=ports[0], http_port=ports[1], metrics_port=ports[2])

    def run(self, releases: int, *, callers: int = 16, pause: float = 0.25, flip_every: int = 10) -> None:
        # All of them beforehand: making one takes a core, which is no part of publishing it.
        made = [self.marker.make(n, encoder=n - n % 4 or 1) for n in range(1, releases + 2)]
        deploy(self.layout, made[0], self.endpoints, gates=None)
        askers = Askers(self.project.grpc_url)
        askers.learn()
        ours, theirs = multiprocessing.Pipe()
        arguments = (self.project.grpc_url, pause, askers.expected, callers, theirs)
        asking = multiprocessing.get_context("spawn").Process(target=ask, args=arguments)
        asking.start()
        try:
            assert ours.recv() == "asking"
            for release in made[1:]:
                self._publish(release)
                if release.number % flip_every == 0:
                    self._flip()
        finally:
            ours.send("stop")
            self.asked = ours.recv()
            asking.join()

    def _publish(self, release: Release) -> None:
        time.sleep(self.quiet_seconds)
        self.memory.append(self._memory())
        began = time.monotonic()
        done = deploy(self.layout, release, self.endpoints, gates=None)
        self.publishes.append((began, time.monotonic()))
        assert done.switch_seconds is not None
        self.switches.append(done.switch_seconds)
        print(
            f"release {release.number}: published in {time.monotonic() - began:.1f} s, "
            f"switched in {done.switch_seconds:.3f} s, {sum(self.memory[-1].values()) >> 20} MB, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )

    def _flip(self) -> None:
        """To the release before, which is loaded, and back."""
        for _ in range(2):
            time.sleep(0.5)
            began = time.monotonic()
            done = roll_back(self.layout, self.project.domain)
            self.publishes.append((began, time.monotonic()))
            assert done.switch_seconds is not None
            self.flips.append(done.switch_seconds)

    def _memory(self) -> dict[str, int]:
        """The proportional set size of each part of the serving tree, in bytes."""
        found: dict[str, int] = defaultdict(int)
        for process in process_tree.processes(self.layout.shared_memory_prefix):
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:  # of a release that has just gone
                continue
            stub = "stub" in Path(command[0]).name
            part = Path(command[1]).relative_to(self.layout.live).parts[0] if stub else "tritonserver"
            found[part] += process_tree.proportional_memory_bytes([process])
        return dict(found)

    def check(self) -> Counter[str]:
        """What failed or was mixed."""
        return Counter(one.failure for one in self.asked if one.failure)

    def growth(self) -> float:
        """The last twenty releases' memory over the first twenty's."""
        total = [sum(one.values()) for one in self.memory[WARM_UP:] or self.memory]
        return float(np.mean(total[-20:]) / np.mean(total[:20]))

    def report(self) -> str:
        begins, ends = (np.array(side) for side in zip(*self.publishes, strict=True))
        began, ended = (np.array([getattr(one, name) for one in self.asked]) for name in ("began", "ended"))
        at = np.searchsorted(begins, ended)  # publishes that began before the answer came
        within = (at > 0) & (began < ends[np.maximum(at - 1, 0)])
        took = (ended - began) * 1_000
        p50, p99 = ([float(np.percentile(took[part], q)) for part in (within, ~within)] for q in (50, 99))
        releases = {one.release for one in self.asked}
        lines = [
            f"{len(self.switches)} releases, {len(self.flips)} flips, {len(self.asked)} requests "
            f"({len(self.asked) / (ended.max() - began.min()):.0f}/s), answers of {len(releases)} releases",
            f"failed or mixed: {dict(self.check()) or 0}",
            f"while publishing p50 {p50[0]:.1f} ms, p99 {p99[0]:.1f} ms ({within.mean():.0%} of requests); "
            f"else p50 {p50[1]:.1f} ms, p99 {p99[1]:.1f} ms; ratio of p99 {p99[0] / p99[1]:.2f}",
            f"publish: median {np.median(ends - begins):.1f} s; switch: median {np.median(self.switches):.3f} s, "
            f"longest {max(self.switches):.3f} s",
        ]
        if self.flips:
            lines.append(f"flip: median {np.median(self.flips):.3f} s, longest {max(self.flips):.3f} s")
        lines.append(f"memory, last 20 to first 20 after {WARM_UP}: {self.growth():.3f}")
        for part in sorted(self.memory[-1]):
            sizes = [one.get(part, 0) / 2**20 for one in self.memory[WARM_UP:] or self.memory]
            lines.append(f"  {part}: {np.mean(sizes[:20]):.1f} MB, then {np.mean(sizes[-20:]):.1f} MB")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=100)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.25, help="mean seconds before the next question")
    parser.add_argument("--quiet", type=float, default=3.0, help="seconds between publishes")
    parser.add_argument("--serving", choices=["ensemble", "fused"], default="ensemble")
    parser.add_argument("--base", type=Path, help="a release folder; without it the sample catalogue is exported")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = options.base
        if base is None:
            sample = new_project(Path(folder) / "sample")
            sample.make("export", f"SERVING={options.serving}", timeout=600)
            base = sample.var / "releases" / "ecommerce" / "1"
        soak = Soak(new_project(Path(folder) / "var"), Release(base), options.quiet)
        try:
            soak.run(options.releases, callers=options.callers, pause=options.pause)
        finally:
            print(Server(soak.layout).stop())
        print(soak.report())


if __name__ == "__main__":
    main()
