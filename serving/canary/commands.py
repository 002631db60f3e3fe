"""Command line for canaries: `python -m serving canary up|verdict|drop`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..gates.gates import Gates, summary
from ..layout import Layout
from ..options import config_option, domain_option, domain_settings, overrides_argument, var_option
from ..releases import ReleaseStore
from .judging import act, judge
from .lifecycle import put_up, take_down
from .verdict import Outcome

DROPPED = 3
NEEDS_MORE = 4


@click.group()
def canary() -> None:
    """Let a release answer some of the people, beside the live one."""


@canary.command()
@var_option
@domain_option
@config_option
@click.option("--release", "number", type=int, help="Number of the release; the newest if left out.")
@click.option("--share", type=float, default=0.1, show_default=True, help="Of the people; 0: shadows alone.")
@click.option("--force", is_flag=True, help="Put it up though it does not pass a gate.")
@overrides_argument
def up(
    var: Path,
    domain: str,
    config: Path | None,
    number: int | None,
    share: float,
    force: bool,
    overrides: tuple[str, ...],
) -> None:
    """Put a canary up, or change its share."""
    store = ReleaseStore(Layout(var).releases(domain))
    release = store.latest() if number is None else store.open(number)
    gates = Gates(domain_settings(config, domain, overrides).gates, force=force)
    done = put_up(Layout(var), release, share, gates)
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for line in summary(gates.findings):
        click.echo(f"  {line}")
    forced = f", FORCED past {', '.join(done.canary.forced)}" if done.canary.forced else ""
    click.echo(
        f"release {release.number} answers as {done.canary.model} (in {done.answer.milliseconds:.0f} ms), meant for "
        f"{100 * share:g} % of the people beside release {done.live}{forced}"
    )


@canary.command()
@var_option
@domain_option
@config_option
@click.option("--dry-run", is_flag=True, help="Only say what the evidence says.")
@overrides_argument
def verdict(var: Path, domain: str, config: Path | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Weigh the evidence, and promote or drop; exits with 0 promoted, 3 dropped, 4 needs more, 1 an error."""
    layout = Layout(var)
    judged = judge(layout, domain, domain_settings(config, domain, overrides).canary)
    said = judged.verdict
    words = {Outcome.PROMOTE: "no worse than allowed", Outcome.DROP: "WORSE than allowed", Outcome.WAIT: "needs more"}
    for one in said.judgements:
        click.echo(f"  {one.of}: {words[one.outcome]}; {one.words}")
    if not dry_run:
        act(layout, judged)
    did = {
        Outcome.PROMOTE: "is promoted: it answers everybody now",
        Outcome.DROP: "is dropped: the live release answers everybody again",
        Outcome.WAIT: "stays the canary: that does not decide yet",
    }
    would = {Outcome.PROMOTE: "would be promoted", Outcome.DROP: "would be dropped", Outcome.WAIT: "would stay"}
    click.echo(f"release {judged.canary.release} of {domain} {(would if dry_run else did)[said.outcome]}")
    sys.exit({Outcome.PROMOTE: 0, Outcome.DROP: DROPPED, Outcome.WAIT: NEEDS_MORE}[said.outcome])


@canary.command()
@var_option
@domain_option
def drop(var: Path, domain: str) -> None:
    """Take the canary down, whatever the evidence says."""
    gone = take_down(Layout(var), domain)
    click.echo(f"release {gone.release} of {domain} is no canary any more: the live release answers everybody")
