"""Command line of the feedback room: `python -m feedback` shows what came in, `… erase` takes some of it out again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.table import Table

from .erasure import erase_older_than, erase_people, people_with_events
from .errors import FeedbackError
from .location import Location
from .reader import Count, FeedbackReader

MOST_DAYS = 36_525
"""That an event may be kept: a hundred years, which every database can reckon with."""


@click.group(invoke_without_command=True)
@click.option(
    "--var",
    type=click.Path(path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where all that is produced lies.",
)
@click.pass_context
def main(context: click.Context, var: Path) -> None:
    """Show how much feedback there is, by domain and event."""
    context.obj = location = Location.below(var)
    if context.invoked_subcommand:
        return
    try:
        with FeedbackReader(location) as reader:
            reader.check()
            counts, watermark = reader.counts(), reader.watermark()
            name = location.name
    except FeedbackError as error:
        raise click.ClickException(str(error)) from None
    if not counts:
        click.echo(f"no feedback yet in {name}; `client.feedback(…)` sends it to a running server")
        return
    Console().print(_table(counts))
    click.echo(f"{sum(count.events for count in counts)} events in {name}, the newest had sequence number {watermark}")


def _a_number(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """Refuse what no range does: no comparison holds for "nan"."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number of days")
    return value


@main.command()
@click.option(
    "--user-ids",
    type=click.File(encoding="utf-8-sig"),
    help="A file with the ids of people, one a line, or - for standard input: all their events go.",
)
@click.option(
    "--older-than-days",
    type=click.FloatRange(0, MOST_DAYS),
    callback=_a_number,
    help="Events that came in before that go.",
)
@click.pass_obj
def erase(location: Location, user_ids: TextIO | None, older_than_days: float | None) -> None:
    """Erase the events of people, or those that came in too long ago. The server may run."""
    if (user_ids is None) == (older_than_days is None):
        raise click.UsageError("give either --user-ids or --older-than-days")
    try:
        if user_ids is not None:
            people = {line.rstrip("\r\n") for line in user_ids} - {""}
            known = people_with_events(location, people)
            click.echo(f"{erase_people(location, people)} events of {known} people erased in {location.name}")
            if known < len(people):
                click.echo(
                    f"{len(people) - known} of {len(people)} ids have no events here; an id counts as it was sent, "
                    "with its capitals and blanks",
                    err=True,
                )
        elif older_than_days is not None:
            erased = erase_older_than(location, older_than_days)
            click.echo(f"{erased} events older than {older_than_days:g} days erased in {location.name}")
    except FeedbackError as error:
        raise click.ClickException(str(error)) from None
    except UnicodeDecodeError:
        raise click.ClickException("the ids of people are not UTF-8; save the file as UTF-8") from None


def _table(counts: list[Count]) -> Table:
    table = Table("domain", "event", box=None, pad_edge=False)
    for heading in ("events", "people"):
        table.add_column(heading, justify="right")
    for heading in ("first (UTC)", "last (UTC)"):
        table.add_column(heading)
    for count in counts:
        moments = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (count.first, count.last))
        table.add_row(count.domain, count.event, f"{count.events}", f"{count.people}", *moments)
    return table


if __name__ == "__main__":
    main()
