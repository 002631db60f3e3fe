"""How much of the encoder's own speed reaches the caller: `python -m loadtest.bench`.

The release's encoder runs alone, in this process, on one thread; then the service answers the same instructions with
1, 8 and 32 requests in flight. All of it in turns, for several rounds: a machine's speed drifts, so only the ratios of
one run mean anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import click
import numpy as np
import onnxruntime
from instructrec_client import AsyncClient, InstructRecError
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tqdm import tqdm

from loadtest.errors import LoadTestError
from loadtest.workload import Query, read_workload

IN_FLIGHT = (1, 8, 32)
LARGEST_BATCH = 32


class Measurement(BaseModel):
    """One row of the benchmark, the median over the rounds.

    Attributes:
        what: what ran.
        p50_ms: milliseconds of one request, or of one batch for the encoder alone.
        per_second: texts a second.
        ratio: of `per_second` to the encoder's best rate in the same round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    p50_ms: float
    per_second: float
    ratio: float


class BareEncoder:
    """A release's encoder without a server around it."""

    def __init__(self, release: Path, domain: str, queries: Sequence[Query]) -> None:
        """Load the graph and tokenize the instructions.

        Raises:
            LoadTestError: the release has no such encoder or tokenizer.
        """
        models = release / "models"
        graph = next(models.glob(f"{domain}_encoder/*/model.onnx"), None)
        tokenizer = next(models.glob(f"{domain}_tokenizer/*/tokenizer.json"), None)
        if graph is None or tokenizer is None:
            raise LoadTestError(f"{release}: no encoder of {domain} in it: name a release folder with --release")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # As the server's own backend opens it.
        self._session = onnxruntime.InferenceSession(
            str(graph),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion", "BiasGeluFusion"],
        )
        encodings = Tokenizer.from_file(str(tokenizer)).encode_batch([query.text for query in queries])
        self._rows = sorted(
            ([i for i, m in zip(e.ids, e.attention_mask, strict=True) if m] for e in encodings), key=len
        )

    def run(self, batch: int, seconds: float) -> tuple[float, float]:
        """Run length-sorted batches for a while.

        Returns:
            The median milliseconds of a batch, and texts a second.
        """
        starts = range(0, max(1, len(self._rows) - batch + 1), batch)
        feeds = [self._feed(self._rows[start : start + batch]) for start in starts]
        times: list[float] = []
        texts = 0
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            # A stride through the lengths, so that a short run does not see the short texts only.
            feed = feeds[len(times) * 7 % len(feeds)]
            self._session.run(None, feed)
            times.append((time.perf_counter() - now) * 1_000)
            texts += len(feed["input_ids"])
        return float(np.median(times)), texts / (time.perf_counter() - began)

    @staticmethod
    def _feed(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


async def serve(url: str, domain: str, queries: Sequence[Query], in_flight: int, seconds: float) -> tuple[float, float]:
    """Keep a number of requests in flight for a while.

    Returns:
        The median milliseconds of a request, and answers a second.

    Raises:
        LoadTestError: a request failed; a benchmark of errors means nothing.
    """
    times: list[float] = []

    async def ask(client: AsyncClient, number: int) -> None:
        while time.perf_counter() < end:
            query = queries[number % len(queries)]
            number += in_flight * 7
            sent = time.perf_counter()
            await client.recommend(query.text, history=query.history)
            times.append((time.perf_counter() - sent) * 1_000)

    try:
        async with AsyncClient(url, domain=domain, timeout=30.0) as client:
            await client.recommend(queries[0].text)
            began = time.perf_counter()
            end = began + seconds
            await asyncio.gather(*(ask(client, number) for number in range(in_flight)))
    except InstructRecError as error:
        raise LoadTestError(f"{url}: {error}") from None
    return float(np.median(times)), len(times) / (time.perf_counter() - began)


def measure(
    url: str, domain: str, encoder: BareEncoder, queries: Sequence[Query], rounds: int, seconds: float
) -> list[Measurement]:
    """Measure everything in turns and take medians over the rounds; the first rows are the encoder alone."""
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        "encoder alone, batch 1": lambda: encoder.run(1, seconds),
        "encoder alone, batch 8": lambda: encoder.run(8, seconds),
        f"encoder alone, batch {LARGEST_BATCH}": lambda: encoder.run(LARGEST_BATCH, seconds),
    }
    for in_flight in IN_FLIGHT:
        name = f"service, {in_flight} in flight"
        runs[name] = lambda in_flight=in_flight: asyncio.run(serve(url, domain, queries, in_flight, seconds))  # type: ignore[misc]
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    with tqdm(total=rounds * len(runs), desc="bench", unit="run", disable=None) as progress:
        for _ in range(rounds):
            results = {}
            for name, run in runs.items():
                results[name] = run()
                progress.update()
            best = max(rate for name, (_, rate) in results.items() if name.startswith("encoder"))
            for name, (p50, rate) in results.items():
                seen[name].append((p50, rate, rate / best))
    medians = {name: np.median(np.array(values), axis=0) for name, values in seen.items()}
    return [
        Measurement(what=name, p50_ms=float(p50), per_second=float(rate), ratio=float(ratio))
        for name, (p50, rate, ratio) in medians.items()
    ]


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


@click.command(help=__doc__)
@click.option("--url", default="127.0.0.1:8001", show_default=True)
@click.option("--domain", default="ecommerce", show_default=True)
@click.option("--release", type=click.Path(path_type=Path), required=True, help="Folder of the release that is live.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Of each run in a round."
)
def main(url: str, domain: str, release: Path, output_dir: Path, rounds: int, seconds: float) -> None:
    """Measure, print a table and write it down as JSON."""
    queries = read_workload(release / "instructions.jsonl")
    encoder = BareEncoder(release, domain, queries)
    measurements = measure(url, domain, encoder, queries, rounds, seconds)
    table = Table(title=f"{domain} release {release.name}: medians of {rounds} rounds in turns")
    for column in ("", "p50 ms", "texts a second", "ratio to the encoder's best"):
        table.add_column(column, justify="right" if column else "left")
    for one in measurements:
        table.add_row(one.what, f"{one.p50_ms:.1f}", f"{one.per_second:.0f}", f"{one.ratio:.2f}")
    Console().print(table)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    report = {"machine": machine(), "release": release.name, "measurements": [one.model_dump() for one in measurements]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
