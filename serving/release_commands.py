"""Command line for the releases of a domain: what there is, what answers, what differs, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from . import watcher
from .canary.journal import CanaryEvent, CanaryJournal
from .comparison import changed_steps, compare
from .deploy import roll_back
from .errors import ReleaseError
from .journal import Journal
from .layout import Layout
from .live_repository import LiveRepository
from .options import domain_option, var_option, watch_option
from .releases import Release, ReleaseStore
from .server import Server

SHOWN_METRICS = (("top-1", "labels", "top1_accuracy"), ("NDCG@10", "ranking", "ndcg@10"))


@click.command()
@var_option
@domain_option
@click.option("--to", "number", type=int, help="The release to go back to; the one that answered before if left out.")
@watch_option
def rollback(var: Path, domain: str, number: int | None, watched: bool) -> None:
    """Let an earlier release answer again; start the server if none runs."""
    deployment = roll_back(Layout(var), domain, number)
    for warning in deployment.warnings:
        click.echo(f"Warning: {warning}", err=True)
    started = deployment.action == "started"
    took = f", server started at {deployment.endpoints.grpc_url}" if started else ""
    if deployment.switch_seconds is not None:
        took = f", switched in {deployment.switch_seconds * 1_000:.0f} ms"
    click.echo(f"{domain}: release {deployment.release} answers again{took}")
    for line in _ways_on(Layout(var), domain, deployment.release):
        click.echo(line)
    if started and watched:
        watcher.start(Layout(var))


def _ways_on(layout: Layout, domain: str, live: int) -> Iterator[str]:
    """Where further rollbacks lead: the next one undoes this one, which whoever wants to go further back must know."""
    journal, there = Journal(layout.journal(domain)), ReleaseStore(layout.releases(domain)).numbers()
    if (undone := journal.live_before(live)) in there:
        yield f"`make rollback` once more returns to {undone}, past no gate"
    if (further := journal.further_back(live)) in there:
        yield f"further back: `make rollback TO={further}`"


@click.command()
@var_option
@domain_option
def releases(var: Path, domain: str) -> None:
    """List a domain's releases: when they were made and live, what changed, how good they are, which one answers."""
    layout = Layout(var)
    store = ReleaseStore(layout.releases(domain))
    if not store.numbers():
        raise ReleaseError(f"there is no release of {domain} in {layout.var}; run `make export`")
    table = Table(title=f"releases of {domain}")
    for column in ("release", "made", "went live", "changed", "precision", "items", *(m[0] for m in SHOWN_METRICS), ""):
        table.add_column(column)
    for row in _rows(layout, domain, store):
        table.add_row(*row)
    _show(table)


def _rows(layout: Layout, domain: str, store: ReleaseStore) -> Iterator[tuple[str, ...]]:
    live = LiveRepository(layout.live).live_release(domain)
    runs = Server(layout).state() is not None
    times: dict[int, str] = {}
    for one in Journal(layout.journal(domain)).publications():
        times[one.release] = f"{_minute(one.at)}{' (forced)' if one.forced else ''}"
    canaries = CanaryJournal(layout.canary_journal(domain)).events()
    fates = {one.release: _fate(one) for one in canaries if one.action != "measured"}
    before: Release | None = None
    for number in store.numbers():
        release = store.open(number)
        manifest = release.manifest
        changed = changed_steps(before, release)
        answers = live is not None and live.number == number
        state = ("answers now" if runs else "live, no server runs") if answers else fates.get(number, "")
        yield (
            str(number),
            _minute(manifest.created),
            times.get(number, "-"),
            "all" if len(changed) == len(manifest.steps) else ", ".join(changed) or "nothing",
            manifest.precision,
            f"{manifest.items:,}",
            *(_metric(manifest.metrics, group, name) for _, group, name in SHOWN_METRICS),
            state,
        )
        before = release


@click.command()
@var_option
@domain_option
@click.option("--before", "first", type=int, help="The release to compare with; the one before if left out.")
@click.option("--after", "second", type=int, help="The release that is compared; the newest if left out.")
def diff(var: Path, domain: str, first: int | None, second: int | None) -> None:
    """Say in what two releases differ: steps, catalogue, labels, score weights, metrics."""
    store = ReleaseStore(Layout(var).releases(domain))
    after = store.latest() if second is None else store.open(second)
    if first is None:
        earlier = [number for number in store.numbers() if number < after.number]
        if not earlier:
            raise ReleaseError(f"release {after.number} of {domain} is the first: there is nothing to compare it with")
        first = earlier[-1]
    before = store.open(first)
    table = Table(title=f"{domain}: release {before.number} against {after.number}")
    for column in ("", f"release {before.number}", f"release {after.number}"):
        table.add_column(column)
    for one in compare(before, after):
        table.add_row(one.what, one.before, one.after)
    _show(table)


def _show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width of its own
        console = Console(width=140)
    console.print(table)


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _fate(event: CanaryEvent) -> str:
    """What became of a release that was tried as a canary, as its last event says."""
    if event.action in {"up", "share"}:
        return f"canary, {100 * event.share:g} %"
    return "" if event.action == "promoted" else f"canary, {event.action}"


def _metric(metrics: Any, group: str, name: str) -> str:
    """A figure of the test split, or of what stands in for it."""
    for split in ("test", "validation"):
        value = metrics.get(split, {}).get(group, {}).get(name) if isinstance(metrics.get(split), dict) else None
        if value is not None:
            return f"{value:.3f}"
    return "-"
