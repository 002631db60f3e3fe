"""The options that commands on a domain's config share, in training and in the rooms above it."""

from pathlib import Path

import click

config_option = click.option(
    "--config", type=click.Path(path_type=Path), required=True, help="The domain's YAML, as configs/ecommerce.yaml."
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="The directory of datasets.",
)
var_option = click.option(
    "--var", type=click.Path(path_type=Path), default=Path("var"), show_default=True, help="Where all output goes."
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
