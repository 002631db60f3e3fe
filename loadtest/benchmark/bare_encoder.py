"""A release's encoder without a server around it: what all else is a share of."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loadtest.benchmark.release_files import ReleaseFiles
from loadtest.workload import shuffled
from serving.steps.encoder_engine import open_engine
from serving.steps.text_encoder import OUTPUT, Vectors
from serving.steps.tokenization import InstructionTokenizer

Feed = dict[str, npt.NDArray[np.int64]]


class ReleaseEncoder:
    """A release's tokenizer and graph, on one thread, as the server's own steps open them."""

    def __init__(self, files: ReleaseFiles) -> None:
        """Open both."""
        self._tokenizer = InstructionTokenizer(files.tokenizer, [files.limit])
        self._engine = open_engine(files.engine, files.graph, threads=1)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of some texts, cut to the release's limit."""
        return self._tokenizer.encode(texts)

    def run(self, feed: Feed) -> Vectors:
        """The instruction vectors of a batch, float32 [rows, H]."""
        [vectors] = self._engine.run([OUTPUT], feed)
        return vectors


class BareEncoder:
    """The encoder, fed with batches of texts of like length."""

    def __init__(self, files: ReleaseFiles, texts: Sequence[str]) -> None:
        """Load the graph and tokenize the instructions."""
        self._encoder = ReleaseEncoder(files)
        self._rows = sorted(self._encoder.tokens(texts), key=len)

    def run(self, batch: int, seconds: float) -> tuple[float, float]:
        """Run length-sorted batches for a while, every length as often as the instructions have it.

        Returns:
            The median milliseconds of a batch, and texts a second.
        """
        feeds = feeds_of(self._rows, batch)
        times: list[float] = []
        texts = 0
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            feed = feeds[len(times) % len(feeds)]
            self._encoder.run(feed)
            times.append((time.perf_counter() - now) * 1_000)
            texts += len(feed["input_ids"])
        return float(np.median(times)), texts / (time.perf_counter() - began)


def feeds_of(rows: Sequence[Sequence[int]], batch: int) -> list[Feed]:
    """Return all rows, sorted by length, as batches of neighbours, of which the last may be smaller.

    The batches are shuffled, so that a short run sees long and short texts alike.
    """
    return shuffled([joined(rows[start : start + batch]) for start in range(0, len(rows), batch)])


def joined(rows: Sequence[Sequence[int]]) -> Feed:
    """Token ids of several texts as one batch, int64 [rows, longest], padded with zeros."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}
