"""`python -m sweep`: measure how a domain's release is served best on this machine, and write that into its YAML.

A room of its own, which nothing imports: it makes configs as `export` does, starts a server as `serving` does, and
loads it as `loadtest` does. The live server and its repository are left alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from export.catalogue import release_before
from export.settings import ServingSettings, read_section
from loadtest.benchmark.__main__ import machine
from loadtest.benchmark.lean_caller import LeanCaller
from loadtest.workload import Query, read_workload
from serving.errors import ServingError
from serving.files import remove
from serving.layout import Layout
from serving.releases import Release, ReleaseStore
from serving.server import Server
from sweep.errors import SweepError
from sweep.report import Report, draw, show
from sweep.search import search
from sweep.settings_file import fragment, write_settings
from sweep.stage import Candidate, Rates, Stage
from sweep.variant import ReleaseParts
from training.config_loading import load_config
from training.options import config_option, overrides_argument, var_option

__all__ = ["main"]

FOLDER = "tune-serving"
PREFIX = "serving."


@click.command()
@config_option
@var_option
@click.option("--release", "number", type=int, help="Which one  [default: the live one, else the newest]")
@click.option("--rounds", type=click.IntRange(min=2), default=5, show_default=True, help="In turns.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=1.5, show_default=True, help="Of each load.")
@click.option("--in-flight", default="1,8,32", show_default=True, help="Requests at once, a load each.")
@click.option("--server-cores", type=click.IntRange(min=1), help="[default: all but one, which is for the load]")
@click.option("--write/--no-write", default=True, show_default=True, help="Change the YAML.")
@overrides_argument
def main(  # noqa: PLR0913, PLR0917 - one an option
    config: Path,
    var: Path,
    number: int | None,
    rounds: int,
    seconds: float,
    in_flight: str,
    server_cores: int | None,
    write: bool,
    overrides: tuple[str, ...],
) -> None:
    """Measure how a release is served best here, and write that into the `serving:` section of its domain's YAML.

    A setting that is given as KEY=VALUE is kept as given, and written too: all else was measured with it.
    """
    numbers = _numbers(in_flight)
    cores, asking = _cores(server_cores)
    settings_now = load_config(config, overrides)
    serving = read_section(ServingSettings, "serving", settings_now.serving)
    written = read_section(ServingSettings, "serving", load_config(config).serving)
    layout = Layout(var)
    release = _release(layout, settings_now.domain, number)
    parts, queries = ReleaseParts.of(release), read_workload(release.instructions)
    if Server(layout).state() is not None:
        click.echo("note: the live server shares the machine; `make stop` it, or measure while it is idle")
    where = machine()
    with _workplace(layout.var / FOLDER / "work") as folder:
        stage = Stage(parts, folder, cores, asking)

        def measure(question: str, candidates: Sequence[Candidate]) -> list[Rates]:
            with tqdm(total=len(candidates) * len(numbers) * rounds, desc=question, unit="load", disable=None) as bar:
                return stage.measure(
                    candidates, _ask, queries, numbers, rounds=rounds, seconds=seconds, progress=bar.update
                )

        fixed = {name.partition("=")[0].removeprefix(PREFIX) for name in overrides if name.startswith(PREFIX)}
        outcome = search(serving, len(cores), measure, fixed=fixed, tell=show)
    report = Report(
        domain=settings_now.domain,
        release=release.number,
        precision=release.manifest.precision,
        machine=where,
        server_cores=len(cores),
        in_flight=numbers,
        rounds=rounds,
        seconds=seconds,
        outcome=outcome,
    )
    _keep(report, layout.var / FOLDER)
    _write(outcome.changes(written), config, write)
    if given := outcome.not_compared(written):
        click.echo(f"given, and not compared with what {config} had: {', '.join(given)}")


def _release(layout: Layout, domain: str, number: int | None) -> Release:
    release = ReleaseStore(layout.releases(domain)).open(number) if number else release_before(layout, domain)
    if release is None:
        raise SweepError(f"there is no release of {domain} in {layout.var} to measure; run `make export` first")
    return release


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise SweepError(f"--in-flight is {text!r}; it must be numbers from 1 on, as 1,8,32")
    return numbers


def _cores(wanted: int | None) -> tuple[frozenset[int], frozenset[int]]:
    """The cores of the server and those of the load."""
    here = sorted(os.sched_getaffinity(0))
    if len(here) < 2 or (wanted or 1) >= len(here):
        raise SweepError(f"one core more than the server's is needed for the load, and there are {len(here)}")
    first = len(here) - wanted if wanted else 1
    return frozenset(here[first:]), frozenset(here[:first])


def _ask(url: str, domain: str, queries: Sequence[Query], in_flight: int, seconds: float) -> tuple[float, float]:
    return LeanCaller(url, domain, queries).run(in_flight, seconds)


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder for one sweep at a time; if the server failed, its log stays there."""
    with Server(Layout(folder)).lock():
        try:
            yield folder
        except ServingError:
            raise
        except BaseException:
            remove(folder)
            raise
        remove(folder)


def _keep(report: Report, folder: Path) -> None:
    path = folder / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    draw(report.outcome.trials, path.with_suffix(".png"))
    click.echo(f"written to {path} and {path.with_suffix('.png').name}")


def _write(changes: Mapping[str, Any], config: Path, write: bool) -> None:
    if not changes:
        click.echo(f"{config} has the best settings already")
    elif write:
        write_settings(config, changes)
        click.echo(f"{config} now has\n{fragment(changes)}\nput it live: make export deploy")
    else:
        click.echo(f"for {config}, which was left alone:\n{fragment(changes)}")
