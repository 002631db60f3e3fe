"""Command line of the feedback room: `python -m feedback` shows what came in."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .errors import FeedbackError
from .location import Location
from .reader import Count, FeedbackReader


@click.command()
@click.option(
    "--var",
    type=click.Path(path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where all that is produced lies.",
)
def main(var: Path) -> None:
    """Show how much feedback there is, by domain and event."""
    try:
        with FeedbackReader(Location.below(var)) as reader:
            reader.check()
            counts, watermark = reader.counts(), reader.watermark()
    except FeedbackError as error:
        raise click.ClickException(str(error)) from None
    if not counts:
        click.echo("no feedback yet; `client.feedback(…)` sends it to a running server")
        return
    Console().print(_table(counts))
    click.echo(f"{sum(count.events for count in counts)} events, the newest has sequence number {watermark}")


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
