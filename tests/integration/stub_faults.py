"""Kill or stop each stub of a watched server under callers: how long until it is mended, and what failed meanwhile.

The proof of docs/serving.md, "Healing", from the project's folder, with a release folder of the sample catalogue:

    PYTHONPATH=tests:tests/integration .venv/bin/python tests/integration/stub_faults.py --base <release>

Sixteen callers, half of them asyncio, ask some 50 times a second and never retry; each waits ten seconds at most.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from marked_releases import Marker
from project import new_project
from release_askers import Asked, Askers

from serving import process_tree, watcher
from serving.deploy import deploy
from serving.embedded import Endpoints
from serving.layout import Layout
from serving.releases import Release
from serving.server import MENDING_SECONDS, Server

IN_A_ROW = 50
"""Answers without a failure between them, after which a server counts as mended."""


def harm(layout: Layout, askers: Askers, part: str, signal: str) -> tuple[float, int, int]:
    """Harm a process, and wait until callers are answered again.

    Args:
        layout: of the server.
        askers: who ask it.
        part: of the process's command line.
        signal: "kill" or "suspend".

    Returns:
        The seconds until answers came that no failure followed, the requests that failed, and all requests until then.
    """
    tree = process_tree.processes(layout.shared_memory_prefix)
    process: psutil.Process = next(one for one in tree if part in " ".join(one.cmdline()[:2]))
    time.sleep(random.uniform(0, watcher.INTERVAL_SECONDS))  # noqa: S311 - at any moment between two looks
    lines = len(layout.watcher_log.read_text().splitlines())
    start, began = len(askers.asked), time.monotonic()
    getattr(process, signal)()
    while True:
        time.sleep(0.1)
        assert time.monotonic() - began < 60, layout.watcher_log.read_text()
        asked = sorted((one for one in askers.asked[start:] if one.ended > began), key=lambda one: one.ended)
        failed = [place for place, one in enumerate(asked) if one.failure]
        after: list[Asked] = asked[failed[-1] + 1 if failed else 0 :]
        if len(layout.watcher_log.read_text().splitlines()) > lines and len(after) >= IN_A_ROW:
            return after[0].ended - began, len(failed), len(asked) - len(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--times", type=int, default=3, help="how often each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = new_project(Path(folder) / "var")
        layout = Layout(project.var)
        ports = (project.grpc_port, project.http_port, project.metrics_port)
        endpoints = Endpoints(grpc_port=ports[0], http_port=ports[1], metrics_port=ports[2])
        store = layout.releases(project.domain)
        store.mkdir(parents=True)
        release = Marker(Release(options.base), store).make(1)
        try:
            deploy(layout, release, endpoints, gates=None)
            watcher.start(layout)
            askers = Askers(project.grpc_url, pause=0.25)
            askers.learn()
            parts = [f"{step.model}/" for step in release.manifest.steps.values()]
            with askers.asking(threads=8, tasks=8):
                for signal in ("kill", "suspend"):
                    for part in (*parts, *(["tritonserver"] if signal == "kill" else [])):
                        found = np.array([harm(layout, askers, part, signal) for _ in range(options.times)])
                        print(
                            f"{part} {signal}: answered again after {found[:, 0].mean():.1f} s "
                            f"({found[:, 0].max():.1f} at most), failed {found[:, 1].mean():.0f} of "
                            f"{found[:, 2].mean():.0f} requests until then",
                            flush=True,
                        )
        finally:
            with Server(layout).lock(
                patience_seconds=MENDING_SECONDS
            ):  # else the watcher takes the stop for one more fault
                print(Server(layout).stop())


if __name__ == "__main__":
    main()
