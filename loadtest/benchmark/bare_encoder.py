"""A release's encoder without a server around it: what all else is a share of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from loadtest.benchmark.release_files import ReleaseFiles
from loadtest.workload import shuffled

Feed = dict[str, npt.NDArray[np.int64]]


def open_graph(engine: str, path: Path) -> Callable[[Feed], Any]:
    """Open a graph on one thread, as the server's own steps do."""
    if engine == "openvino":
        import openvino  # noqa: PLC0415 - only where a release is served with it

        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
        return lambda feed: request.infer(feed)[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion", "BiasGeluFusion"],
    )
    return lambda feed: session.run(None, feed)[0]


class BareEncoder:
    """The encoder, fed with batches of texts of like length."""

    def __init__(self, files: ReleaseFiles, texts: Sequence[str]) -> None:
        """Load the graph and tokenize the instructions."""
        self._run = open_graph(files.engine, files.graph)
        encodings = Tokenizer.from_file(str(files.tokenizer)).encode_batch(list(texts))
        rows = [[i for i, m in zip(e.ids, e.attention_mask, strict=True) if m] for e in encodings]
        self._rows = sorted(rows, key=len)

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
            self._run(feed)
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
