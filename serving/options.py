"""Options that several commands of this room share."""

from pathlib import Path

import click

var_option = click.option(
    "--var",
    type=click.Path(path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where all that is produced lies.",
)
domain_option = click.option("--domain", default="ecommerce", show_default=True)
watch_option = click.option(
    "--watch/--no-watch", "watched", default=True, show_default=True, help="Have a watcher look after the server."
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The domain's YAML, for its sections `gates` and `canary`; their defaults without it.",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
