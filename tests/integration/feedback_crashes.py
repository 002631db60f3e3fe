"""Kill what takes feedback at random instants, under load, and hold the store against what was acknowledged.

The proof of docs/feedback.md, from the project's folder:

    PYTHONPATH=tests:tests/integration .venv/bin/python tests/integration/feedback_crashes.py --instants 30
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from feedback_server import FeedbackServer, feedback_server
from instructrec_client import Client, Feedback, InstructRecError
from postgresql import cluster

from feedback.location import URL_VARIABLE
from serving.server import tail


@dataclass
class Senders:
    """Clients that go on sending whatever happens, and remember what they were told.

    Of the events that got an error instead of an answer, half are sent again, as many times as it takes.
    """

    url: str
    domain: str = field(default_factory=lambda: f"crashes-{random.randrange(10**9)}")  # noqa: S311
    acknowledged: dict[str, float] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    repeated: int = 0
    harmed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def send(self, seed: int) -> None:
        chooser = random.Random(seed)  # noqa: S311 - to vary, not to hide
        batch: list[Feedback] = []
        persists = False
        with Client(self.url, domain=self.domain, timeout=5, retries=0) as client:
            while not self._stop.is_set():
                if not batch:
                    persists = chooser.random() < 0.5
                    batch = [
                        Feedback("purchase", "item", value=chooser.randrange(1_000), user_id=f"{seed}")
                        for _ in range(chooser.choice([1, 1, 4, 16]))
                    ]
                self.attempted.update(one.event_id for one in batch)
                try:
                    new = client.feedback_batch(batch)
                except InstructRecError as error:
                    self.errors[type(error).__name__] += 1
                    self.last_error = str(error)
                    time.sleep(0.02)
                    batch = batch if persists else []
                    continue
                self.repeated += new.count(False)
                self.acknowledged.update((one.event_id, one.value or 0.0) for one in batch)
                batch = []

    @contextmanager
    def running(self, threads: int = 4) -> Iterator[None]:
        running = [threading.Thread(target=self.send, args=(seed,)) for seed in range(threads)]
        for one in running:
            one.start()
        try:
            yield
        finally:
            self._stop.set()
            for one in running:
                one.join()


def harm(senders: Senders, instants: int, kill: Callable[[], None], recover: Callable[[], None]) -> None:
    """Kill at random instants, each only after events are acknowledged again."""
    chooser = random.Random()  # noqa: S311
    with senders.running():
        for _ in range(instants):
            before, deadline = len(senders.acknowledged), time.monotonic() + 60
            while len(senders.acknowledged) < before + 20:
                assert time.monotonic() < deadline, (
                    f"after {senders.harmed} instants nothing is acknowledged any more: {senders.last_error}"
                )
                time.sleep(0.01)
            time.sleep(chooser.uniform(0, 0.3))
            kill()
            senders.harmed += 1
            recover()


def check(server: FeedbackServer, senders: Senders) -> str:
    """Hold the store against what the senders were told, and say so in one line."""
    with server.reader() as reader:
        reader.check()
        stored = list(reader.events(senders.domain))
    ids = Counter(one.event_id for one in stored)
    values = {one.event_id: one.value for one in stored}
    lost = [one for one in senders.acknowledged if one not in ids]
    twice = [one for one, times in ids.items() if times > 1]
    changed = [one for one, value in senders.acknowledged.items() if values.get(one) != value]
    assert not lost, f"{len(lost)} of {len(senders.acknowledged)} acknowledged events are lost"
    assert not twice, f"{len(twice)} events are there twice"
    assert not changed, f"{len(changed)} events changed"
    assert set(ids) <= senders.attempted
    sequences = [one.sequence for one in stored]
    assert sequences == sorted(set(sequences))
    return (
        f"{len(senders.acknowledged)} acknowledged, all there exactly once; "
        f"{len(ids) - len(senders.acknowledged)} more stored without an answer; "
        f"{senders.repeated} were known when sent again; errors {dict(senders.errors)}"
    )


def kill_stub(server: FeedbackServer, instants: int) -> Senders:
    senders = Senders(server.url)
    harm(senders, instants, server.kill_stub, server.restart_stub)
    return senders


def kill_server(server: FeedbackServer, instants: int) -> Senders:
    senders = Senders(server.url)
    harm(senders, instants, server.kill, server.start)
    return senders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instants", type=int, default=30)
    parser.add_argument("--what", choices=["stub", "server", "postgresql"], nargs="*")
    options = parser.parse_args()
    for what in options.what or ["stub", "server", "postgresql"]:
        with tempfile.TemporaryDirectory() as folder:
            if what == "postgresql":
                with cluster() as database:
                    os.environ[URL_VARIABLE] = database.create_database()
                    _prove(what, Path(folder), options.instants, database.stop, database.start)
                    del os.environ[URL_VARIABLE]
            else:
                _prove(what, Path(folder), options.instants)


def _prove(
    what: str,
    folder: Path,
    instants: int,
    stop: Callable[[], None] | None = None,
    start: Callable[[], None] | None = None,
) -> None:
    server = feedback_server(folder / "var")
    server.start()
    try:
        if stop is None or start is None:
            senders = (kill_stub if what == "stub" else kill_server)(server, instants)
        else:
            senders = Senders(server.url)
            harm(senders, instants, stop, start)
        print(f"{what}, {instants} instants: {check(server, senders)}", flush=True)
    except AssertionError:
        print(tail(server.layout.server_log, 30), flush=True)
        raise
    finally:
        server.stop()


if __name__ == "__main__":
    main()
