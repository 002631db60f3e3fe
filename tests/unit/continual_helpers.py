"""A live release whose head is tuned without an encoder: words stand for directions, texts for their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from run_helpers import HIDDEN_SIZE, items_of, made_run, vectors_of

from continual.command import main
from continual.head_update import Anchor, Examples, HeadWeights, update_head
from continual.tuner import Tuner
from feedback.events import Event
from feedback.location import Location
from feedback.store import FeedbackStore
from serving.journal import Journal
from serving.manifest import Manifest
from serving.releases import Release, ReleaseStore
from training.config_loading import load_config
from training.dataset import Instruction
from training.derived_run import derive_run
from training.run import Run

KINDS = {"Hats": "hat", "Shirts": "shirt", "Shoes": "shoe"}
BEGINNINGS = ("show me a", "I want a", "buy the", "is there a", "find some", "please a", "any nice", "one more")


WORDS = ("hat", "shirt", "shoe", "drip", "kicks", "fit")
"""Those that mean something: each has a dimension of its own."""


def words_as_vectors(texts: Sequence[str]) -> np.ndarray:
    """What stands for an encoder: vectors in which the word that means something counts most, float32 [n, 8]."""
    rows = 0.3 * vectors_of(texts)
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            if word in WORDS:
                row[WORDS.index(word)] += 1
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


LENIENT = ("continual.budget=100", "continual.drift_budget=100")
"""No head is refused for what it forgets."""
STUBBORN = ("continual.replay_ratio=0.01", "continual.replay=0", "continual.replay_items=0")
"""Learns whatever it is told, at the cost of what it knew."""


class WordEncoder:
    """Stands where a release's ONNX graph is opened."""

    hidden_size = HIDDEN_SIZE

    def __init__(self, release: Release, run: Run) -> None:
        self.embedded: list[str] = []

    def cache(self, var: Path) -> WordEncoder:
        return self

    def embed(self, *of_encoder_or_cache: Any, batch_size: int = 64) -> np.ndarray:
        texts: Sequence[str] = of_encoder_or_cache[-1]
        self.embedded += texts
        return words_as_vectors(texts)


class Shop:
    """A domain with a live release, its feedback, and what a tuner makes of it.

    The encoder is a real one in a folder, whose vectors `embed` makes, or words that stand for directions.
    """

    def __init__(
        self,
        config: Path,
        var: Path,
        encoder: Path | None = None,
        embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        self.config, self.var = config, var
        splits = ("train", "validation", "test")
        instructions = [
            Instruction(f"{label} {n}", f"{begin} {word}", label, {}, {}, splits[n % 3])
            for label, word in KINDS.items()
            for n, begin in enumerate(BEGINNINGS)
        ]
        names = {label: [f"{word}{n}" for n in range(4)] for label, word in KINDS.items()}
        items = [item for label in KINDS for item in items_of(*names[label], label=label)]
        untaught = made_run(config, var, items, instructions, encoder=encoder, embed=embed or vectors_of)
        # A random encoder's vectors are nearly alike: it takes a long head and all words to tell the kinds apart.
        taught = [one for one in instructions if one.split == "train" or encoder is not None]
        ids = np.array([untaught.labels.index(one.label) for one in taught])
        vectors = (embed or words_as_vectors)([one.text for one in taught])
        examples, width = Examples(vectors, ids, np.ones(len(ids))), vectors.shape[1]
        zero = HeadWeights(np.zeros((3, width), np.float32), np.zeros(3, np.float32))
        penalty = 1e-3 if encoder is None else 1e-6
        head = update_head(zero, examples, Examples.none(width), Anchor(penalty))
        self.run = derive_run(untaught, var, reason="a head that knows something", head=(head.weight, head.bias))
        self.store = ReleaseStore(var / "releases" / self.run.domain)
        self.release = self.export(self.run)
        self.fail_after_export = False
        self.lines: list[str] = []
        self._sent = 0
        # Who is held out follows from this key: with one of its own, each run of a test would measure on other people.
        key = Location.below(var).key_file
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key.write_text("a key that is the same for every test\n", encoding="utf-8")

    def export(self, run: Run, _: Release | None = None) -> Release:
        """A release that is nothing but its manifest; the same one for the same run, as export does it."""
        numbers = self.store.numbers()
        if numbers and self.store.latest().manifest.run_id == run.run_id:
            return self.store.latest()
        folder = self.store.folder / str(len(numbers) + 1)
        folder.mkdir(parents=True)
        Manifest(
            domain=run.domain,
            release=len(numbers) + 1,
            created="2026-01-01T00:00:00+00:00",
            run_id=run.run_id,
            run_fingerprint=run.manifest.fingerprint,
            export_fingerprint="e",
            precision="fp32",
            items=12,
            labels=3,
            metrics=run.manifest.metrics,
            verification={},
            steps={},
            files={},
        ).write(folder)
        return Release(folder)

    def tuner(self, *overrides: str) -> Tuner:
        """A tuner of the domain, as a command would open it."""

        def export(run: Run, before: Release) -> Release:
            release = self.export(run, before)
            if self.fail_after_export:
                raise KeyboardInterrupt
            return release

        return Tuner(load_config(self.config, overrides), self.var, export, self.lines.append)

    def make_live(self, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have a release answer, and the journal know it."""
        Journal(self.var / "journal" / f"{self.run.domain}.jsonl").write(release.number, None, "deploy")
        monkeypatch.setattr("continual.tuner.LiveRepository.live_release", lambda *_: release)

    def send(self, count: int, phrase: str, item: str, person: Callable[[int], str] = str) -> None:
        """Have people do something with an item after they asked for a phrase."""
        location = Location.below(self.var)
        store = FeedbackStore(location)
        events = []
        for number in range(count):
            self._sent += 1
            begin = BEGINNINGS[number % len(BEGINNINGS)]
            events.append(
                Event(
                    event_id=f"e-{self._sent}",
                    domain=self.run.domain,
                    event="click",
                    item_id=item,
                    value=1.0,
                    timestamp=1_790_000_000_000,
                    user_id=person(number),
                    instruction=f"{begin} {phrase}",
                )
            )
        store.write(events)
        store.close()


def tune(shop: Shop) -> Result:
    """What `make tune` runs, on words that stand for directions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("continual.command.open_tuner", lambda *_: shop.tuner())
        return CliRunner().invoke(main, ["tune", "--config", str(shop.config), "--var", str(shop.var)])
