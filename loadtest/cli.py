"""`python -m loadtest`: load, measure, judge, report."""

from __future__ import annotations

import asyncio
import functools
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import click
from instructrec_client import AsyncClient, Client, InstructRecError
from tqdm import tqdm

from loadtest.closed_loop import ClosedLoop, run_closed_loop
from loadtest.errors import LoadTestError
from loadtest.open_loop import arrivals, ask_server, run_open_loop
from loadtest.report import Report, criteria_table, failures, report_folder, warnings, write_report
from loadtest.sla import read_sla
from loadtest.summary import OpenLoopSummary
from loadtest.workload import Query, expected_release, items_due, read_workload

__all__ = ["SLA_MISSED", "command", "main"]

SLA_MISSED = 2
"""The exit code of a run that went well and missed the SLA; 1 is an error, 0 a kept SLA."""

SECONDS_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"

DAY_S = 86_400
File = click.Path(path_type=Path)
Seconds = click.FloatRange(min=0, min_open=True, max=DAY_S)
option = functools.partial(click.option, show_default=True)


@click.command()
@option("--url", default="127.0.0.1:8001", help="The server's gRPC endpoint.")
@option("--domain", default="ecommerce", help="The domain to ask.")
@option("--config", type=File, required=True, help="The domain's YAML, whose `sla:` section is judged.")
@option("--instructions", type=File, required=True, help="What to ask: JSON lines with `text` and `history`.")
@option(
    "--output-dir", type=File, default=Path("var", "loadtest"), help="Where each run adds a folder named by its time."
)
@option("--users", type=click.IntRange(min=1), default=8, help="Users at once.")
@option("--spawn-rate", type=click.FloatRange(min=0, min_open=True), default=8.0, help="Users started a second.")
@option("--duration", type=Seconds, default=20.0, help="Seconds of each load, once all users have started.")
@option("--k", type=click.IntRange(1, 100), default=10, help="Items to ask for.")
@option("--deadline", type=Seconds, default=5.0, help="Seconds a request may take.")
@option(
    "--open-loop-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Requests a second of open-loop load, which comes second.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(  # noqa: PLR0913, PLR0917 - one an option
    url: str,
    domain: str,
    config: Path,
    instructions: Path,
    output_dir: Path,
    open_loop_rate: float | None,
    duration: float,
    users: int,
    spawn_rate: float,
    k: int,
    deadline: float,
    overrides: tuple[str, ...],
) -> int:
    """Load a server with a domain's instructions and judge it by the domain's SLA.

    A bar that is given as sla.KEY=VALUE counts instead of the YAML's.

    Exits with 0 when the SLA is met, 2 when it is missed, 1 after an error.
    """
    created = datetime.now(timezone.utc)
    sla = read_sla(config, overrides)
    queries, due = read_workload(instructions), items_due(instructions, k)
    expected = expected_release(instructions)
    settings = ClosedLoop(
        url=url,
        domain=domain,
        instructions=instructions,
        k=k,
        users=users,
        spawn_rate=spawn_rate,
        duration_s=duration,
        deadline_s=deadline,
    )
    if settings.ramp_up_s > DAY_S:
        raise LoadTestError(f"{users} users, {spawn_rate:g} a second, need over a day to start: raise --spawn-rate")
    _ask_once(settings, queries[0])
    target = output_dir / f"{created:%Y%m%dT%H%M%SZ}"
    with report_folder(target) as folder:
        with tqdm(total=settings.ramp_up_s + duration, desc="closed loop", unit="s", bar_format=SECONDS_BAR) as bar:
            closed = run_closed_loop(settings, folder, lambda seconds: _advance(bar, seconds))
        opened = None if open_loop_rate is None else _open_loop(settings, queries, due, open_loop_rate)
        closed_verdict = sla.verdict(closed)
        open_verdict = None if opened is None else sla.verdict(opened, rate_is_given=True)
        report = Report(
            created=created,
            settings=settings,
            expected_release=expected,
            sla=sla,
            closed_loop=closed,
            closed_loop_verdict=closed_verdict,
            open_loop=opened,
            open_loop_verdict=open_verdict,
            met=closed_verdict.met and (open_verdict is None or open_verdict.met),
        )
        write_report(report, folder)
    _show(report, target)
    return 0 if report.met else SLA_MISSED


def main() -> int:
    """Run the command line and return the exit code.

    click ends a usage error with 2, which means a missed SLA here: so errors are shown, and end with 1, in this place.
    """
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted!", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _advance(bar: tqdm[NoReturn], seconds: float) -> None:
    bar.update(min(seconds, (bar.total or 0.0) - bar.n))  # Locust also takes time to start and stop


def _ask_once(settings: ClosedLoop, query: Query) -> None:
    """Fail now, in one line, rather than after a run of nothing but failures."""
    try:
        with Client(settings.url, domain=settings.domain, timeout=settings.deadline_s, retries=0) as client:
            client.recommend(query.text, history=query.history, k=settings.k)
    except (InstructRecError, ValueError) as error:
        raise LoadTestError(str(error)) from error


def _open_loop(settings: ClosedLoop, queries: list[Query], due: int, rate: float) -> OpenLoopSummary:
    async def run(bar: tqdm[NoReturn]) -> OpenLoopSummary:
        client = AsyncClient(settings.url, domain=settings.domain, timeout=settings.deadline_s, retries=0)
        async with client:
            await client.ready()
            send = ask_server(client, queries, settings.k, due)
            return await run_open_loop(
                send, rate=rate, duration_s=settings.duration_s, progress=lambda: _advance(bar, 1)
            )

    scheduled = len(arrivals(rate, settings.duration_s))
    if not scheduled:
        raise LoadTestError(f"--open-loop-rate {rate:g} sends nothing in {settings.duration_s:g} s: raise one of them")
    try:
        with tqdm(total=scheduled, desc="open loop", unit="request") as bar:
            return asyncio.run(run(bar))
    except InstructRecError as error:  # of ready(): those of requests are counted
        raise LoadTestError(str(error)) from error


def _show(report: Report, folder: Path) -> None:
    rows = criteria_table(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for load, reason, count in failures(report):
        click.echo(f"{load}: {count} failed with {reason}")
    for warning in warnings(report):
        click.echo(warning)
    requests = report.closed_loop.requests + (report.open_loop.requests if report.open_loop else 0)
    click.echo(f"\nSLA {'met' if report.met else 'missed'} over {requests} requests. Report: {folder / 'report.html'}")
