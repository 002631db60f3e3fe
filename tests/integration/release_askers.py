"""Callers that go on asking while releases change under them, and hold every answer against what it must be."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from instructrec_client import AsyncClient, Client, InstructRecError, Recommendations
from marked_releases import difference

QUESTIONS = (
    "I want to buy a blue shirt",
    "a warm winter jacket for my son",
    "something elegant for a wedding",
    "shoes",
    "a red bag of leather for work, not too large, with a strap that I can take off and a place for a laptop",
)
K = 5


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent and answered (monotonic seconds), by which release, or why not."""

    began: float
    ended: float
    release: str
    failure: str


@dataclass
class Askers:
    """Sync callers in threads and asyncio callers in one loop, none of which retries.

    Attributes:
        url: of the server.
        pause: seconds that each caller waits between an answer and its next question, in the mean.
        expected: by question, an answer of a whole release.
    """

    url: str
    pause: float = 0.0
    expected: dict[str, Recommendations] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def learn(self) -> None:
        """Ask a server that is left alone what the answers are."""
        with Client(self.url) as client:
            self.expected = {text: client.recommend(text, k=K) for text in QUESTIONS}

    @contextmanager
    def asking(self, *, threads: int, tasks: int) -> Iterator[None]:
        running = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(threads)]
        running.append(threading.Thread(target=lambda: asyncio.run(self._ask_together(tasks))))
        for one in running:
            one.start()
        try:
            yield
        finally:
            self._stop.set()
            for one in running:
                one.join()

    def _ask(self, seed: int) -> None:
        chooser = random.Random(seed)  # noqa: S311 - to vary, not to hide
        with Client(self.url, retries=0, timeout=10) as client:
            while not self._stop.is_set():
                text, began = chooser.choice(QUESTIONS), time.monotonic()
                try:
                    answer: Recommendations | InstructRecError = client.recommend(text, k=K)
                except InstructRecError as error:
                    answer = error
                self._note(began, text, answer)
                time.sleep(chooser.uniform(0, 2 * self.pause) if isinstance(answer, Recommendations) else 0.05)

    async def _ask_together(self, tasks: int) -> None:
        async with AsyncClient(self.url, retries=0, timeout=10) as client:
            await asyncio.gather(*(self._ask_async(client, 1_000 + seed) for seed in range(tasks)))

    async def _ask_async(self, client: AsyncClient, seed: int) -> None:
        chooser = random.Random(seed)  # noqa: S311
        while not self._stop.is_set():
            text, began = chooser.choice(QUESTIONS), time.monotonic()
            try:
                answer: Recommendations | InstructRecError = await client.recommend(text, k=K)
            except InstructRecError as error:
                answer = error
            self._note(began, text, answer)
            await asyncio.sleep(chooser.uniform(0, 2 * self.pause) if isinstance(answer, Recommendations) else 0.05)

    def _note(self, began: float, text: str, answer: Recommendations | InstructRecError) -> None:
        ended = time.monotonic()
        if isinstance(answer, InstructRecError):
            self.asked.append(Asked(began, ended, "", f"failed: {type(answer).__name__}: {answer}"))
            return
        wrong = difference(answer, self.expected[text])
        self.asked.append(Asked(began, ended, answer.release, f"mixed: {wrong}" if wrong else ""))

    def failures(self, since: int = 0) -> Counter[str]:
        return Counter(one.failure for one in self.asked[since:] if one.failure)

    def wait_for_answers(self, count: int, *, seconds: float = 60) -> None:
        """Until so many more were answered."""
        whole = lambda: sum(not one.failure for one in self.asked[start:])  # noqa: E731
        start, deadline = len(self.asked), time.monotonic() + seconds
        while whole() < count:
            assert time.monotonic() < deadline, f"nothing is answered any more: {self.failures(start).most_common(2)}"
            time.sleep(0.02)
