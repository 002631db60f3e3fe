"""How much of the encoder's own speed reaches the caller.

The release's encoder runs alone, on one thread; then the service answers the same instructions with 1, 8 and 32
requests in flight, and so does a plain FastAPI service with the same encoder. One core is for what is measured, the
others are for who asks: a lean caller, so that the server is measured, and then the project's own Python client, which
shows what that costs. All of it in turns, for several rounds: a machine's speed drifts, so only the ratios of one run
mean anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import click
import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from loadtest.benchmark.bare_encoder import BareEncoder
from loadtest.benchmark.contenders import ask_plain, ask_service, plain_service_process
from loadtest.benchmark.cores import Cores, listener, pin
from loadtest.benchmark.lean_caller import LeanCaller
from loadtest.benchmark.plot import draw
from loadtest.benchmark.release_files import ReleaseFiles
from loadtest.ending import exit_when_told
from loadtest.workload import Query, read_workload

BATCHES = (1, 8, 16, 32)
IN_FLIGHT = (1, 8, 32)
CLIENT_IN_FLIGHT = (1, 32)
UNCUT = 1_000
"""Characters in a line, more than any table has."""
ONE_TEXT = "encoder alone, batch 1"
Run = Callable[[], tuple[float, float]]


class Measurement(BaseModel):
    """One row of the benchmark, the median over the rounds.

    Attributes:
        what: what ran.
        p50_ms: milliseconds of one request, or of one batch for the encoder alone.
        per_second: texts a second.
        over_encoder_ms: `p50_ms` less that of the encoder alone with one text, in the same round.
        asking: what part of a core the asking process was busy for; near 1, it is the caller that is measured. Of the
            encoder alone, which runs in that process, its own.
        ratio: of `per_second` to the encoder's best rate in the same round.
        ratios: the same of every round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    p50_ms: float
    over_encoder_ms: float
    asking: float
    per_second: float
    ratio: float
    ratios: tuple[float, ...]


def measure(runs: dict[str, Run], rounds: int) -> list[Measurement]:
    """Measure everything in turns; names that start with "encoder" are what the others are a share of."""
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    with tqdm(total=rounds * len(runs), desc="bench", unit="run", disable=None) as progress:
        for _ in range(rounds):
            results = {}
            for name, run in runs.items():
                began, busy = time.perf_counter(), time.process_time()
                p50, rate = run()
                asking = (time.process_time() - busy) / (time.perf_counter() - began)
                results[name] = p50, asking, rate
                progress.update()
            best = max(rate for name, (_, _, rate) in results.items() if name.startswith("encoder"))
            for name, (p50, asking, rate) in results.items():
                seen[name].append((p50, p50 - results[ONE_TEXT][0], asking, rate, rate / best))
    found = []
    for name, values in seen.items():
        p50, over, asking, rate, ratio = np.median(np.array(values), axis=0).tolist()
        found.append(
            Measurement(
                what=name,
                p50_ms=p50,
                over_encoder_ms=over,
                asking=asking,
                per_second=rate,
                ratio=ratio,
                ratios=tuple(one[-1] for one in values),
            )
        )
    return found


def runs_of(
    files: ReleaseFiles, url: str, domain: str, plain_port: int, queries: Sequence[Query], cores: Cores, seconds: float
) -> dict[str, Run]:
    """Everything that is measured, by name, in the order it runs in a round."""
    encoder = BareEncoder(files, [query.text for query in queries])

    def alone(batch: int) -> tuple[float, float]:
        with cores.working_on(frozenset({cores.measured})):
            return encoder.run(batch, seconds)

    runs: dict[str, Run] = {f"encoder alone, batch {batch}": lambda batch=batch: alone(batch) for batch in BATCHES}  # type: ignore[misc]
    lean = LeanCaller(url, domain, queries)
    for number in IN_FLIGHT:
        runs[f"{files.mode}, {number} in flight"] = lambda number=number: lean.run(number, seconds)  # type: ignore[misc]
    for number in CLIENT_IN_FLIGHT:
        runs[f"{files.mode}, {number} in flight, Python client"] = lambda number=number: asyncio.run(  # type: ignore[misc]
            ask_service(url, domain, queries, number, seconds)
        )
    for door, name in (("recommend", "FastAPI"), ("encode", "FastAPI without ranking")):
        runs[f"{name}, 32 in flight"] = lambda door=door: asyncio.run(  # type: ignore[misc]
            ask_plain(plain_port, door, queries, 32, seconds)
        )
    return runs


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": models[0] if models else platform.processor(),
        "vector units": ", ".join(one for one in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f" {one}" in flags),
        "cores": len(os.sched_getaffinity(0)),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def show(title: str, measurements: Sequence[Measurement]) -> None:
    """Print the table."""
    table = Table(title=title)
    for column in ("", "p50 ms", "over one text alone", "asking core", "texts a second", "ratio to the encoder's best"):
        table.add_column(column, justify="right" if column else "left")
    for one in measurements:
        over = f"{one.over_encoder_ms:+.2f}" if ", 1 in flight" in one.what else ""
        asking = "" if one.what.startswith("encoder") else f"{one.asking:.2f}"
        table.add_row(one.what, f"{one.p50_ms:.2f}", over, asking, f"{one.per_second:.0f}", f"{one.ratio:.2f}")
    # Where nobody said how wide a line may be, in a pipe or a log, none is cut.
    Console(width=None if sys.stdout.isatty() else UNCUT).print(table)


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
    """Measure, print a table, and write it down as JSON and as a plot."""
    where = machine()
    queries = read_workload(release / "instructions.jsonl")
    files = ReleaseFiles.of(release, domain)
    cores = Cores.here()
    server = listener(int(url.rpartition(":")[2]))
    measured = frozenset({cores.measured})
    with (
        plain_service_process(release, domain, server) as (plain, port),
        cores.working_on(measured, server),
        cores.working_on(cores.asking),
    ):
        pin(plain, measured)
        measurements = measure(runs_of(files, url, domain, port, queries, cores, seconds), rounds)
    show(f"{domain} release {release.name}, {files.mode} on {files.engine}: {rounds} rounds in turns", measurements)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    report = {
        "machine": where,
        "release": release.name,
        "mode": files.mode,
        "engine": files.engine,
        "measurements": [one.model_dump() for one in measurements],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw({one.what: one.ratios for one in measurements}, path.with_suffix(".png"))
    click.echo(f"written to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    exit_when_told()
    main()
