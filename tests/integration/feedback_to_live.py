"""Teach a live server a phrase through feedback, and measure the time until an answer reflects it.

The proof of docs/continual.md, from the project's folder, on a `VAR` whose server runs:

    PYTHONPATH=tests:tests/integration .venv/bin/python tests/integration/feedback_to_live.py --var var --label Watches
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from instructrec_client import Client, Feedback
from project import ROOT, Project

BEGINNINGS = (
    "show me some {}", "I want {}", "{} for the weekend", "fresh {} please", "looking for new {}", "need {} under 50",
    "where is the {}", "the best {} you have", "{} for my brother", "cool {}",
)  # fmt: skip
ENDINGS = ("", " today", " now", " in black", " for men", " for women", " for a party")
ASKED = "any good {} for me"
"""In none of the events: the phrase has to be known, not a sentence."""


@dataclass(frozen=True)
class Timing:
    """Seconds from when the last event was acknowledged to the first answer that reflects what they say."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float
    output: str


def items_of(project: Project, label: str) -> list[str]:
    """Items of a label in the newest run's catalogue."""
    newest = max((project.var / "runs" / project.domain).iterdir())
    rows = map(json.loads, (newest / "catalogue.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["item_id"] for row in rows if row["label"] == label][:10]


def events_of(phrase: str, items: list[str], count: int = 200, people: int = 60) -> list[Feedback]:
    """What people say who mean a label by a phrase, in words of their own."""
    texts = itertools.cycle(begin.format(phrase) + end for end, begin in itertools.product(ENDINGS, BEGINNINGS))
    kinds = itertools.cycle(("click", "click", "add", "purchase"))
    return [
        Feedback(next(kinds), items[n % len(items)], user_id=f"person {n % people}", instruction=next(texts))
        for n in range(count)
    ]


def labels_answered(project: Project, text: str) -> tuple[str, ...]:
    with Client(project.grpc_url, domain=project.domain, timeout=30) as client:
        return tuple(item.label for item in client.recommend(text, k=5))


@contextmanager
def following(project: Project, events: int) -> Iterator[subprocess.Popen[str]]:
    """`make follow`, waiting for events; stopped by SIGTERM as a service manager would."""
    command = [sys.executable, "-m", "continual", "follow", "--config", f"configs/{project.domain}.yaml"]
    process = subprocess.Popen(
        [*command, "--var", str(project.var), "--events", str(events), *project.settings],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "following the feedback" in line:
                break
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def teach(
    project: Project, phrase: str, label: str, *, follow: bool = False, patience: float = 240, pause: float = 0.02
) -> Timing:
    """Send 200 events, have them learned, and ask every `pause` seconds until the first items are of the label."""
    asked = ASKED.format(phrase)
    events = events_of(phrase, items_of(project, label))
    before = labels_answered(project, asked)

    def send() -> float:
        with Client(project.grpc_url, domain=project.domain, timeout=30) as client:
            client.feedback_batch(events)
        return time.monotonic()

    def wait(began: float, running: Callable[[], bool]) -> tuple[tuple[str, ...], float]:
        while (after := labels_answered(project, asked))[:3] != (label,) * 3:
            if not running() or time.monotonic() > began + patience:
                return after, float("inf")
            time.sleep(pause)
        return after, time.monotonic() - began

    if follow:
        with following(project, len(events)) as process:
            after, seconds = wait(send(), lambda: process.poll() is None)
        assert process.stderr is not None
        return Timing(before, after, seconds, process.stderr.read())
    began, done = send(), []
    command = threading.Thread(target=lambda: done.append(project.make("tune", "deploy", check=False)))
    command.start()
    after, seconds = wait(began, command.is_alive)
    command.join()
    return Timing(before, after, seconds, done[0].stdout + done[0].stderr)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--var", type=Path, required=True)
    arguments.add_argument("--domain", default="ecommerce")
    arguments.add_argument("--label", required=True)
    arguments.add_argument("--phrase", default="drip")
    arguments.add_argument("--follow", action="store_true", help="through `make follow` instead of `make tune deploy`")
    given = arguments.parse_args()
    state = json.loads((given.var / "server.json").read_text())["endpoints"]
    ports = (state[f"{name}_port"] for name in ("grpc", "http", "metrics"))
    timing = teach(Project(given.var, *ports, domain=given.domain), given.phrase, given.label, follow=given.follow)
    print(timing.output)
    print(f"before: {timing.before}; after: {timing.after}")
    print(f"{timing.seconds:.1f} s from the last acknowledged event to the first answer that reflects it")


if __name__ == "__main__":
    main()
