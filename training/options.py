"""The options that commands on a domain's config share, in training and in the rooms above it."""

import os
from pathlib import Path

import click

from training.errors import TrainingError


def _writable(_context: click.Context, _option: click.Parameter, var: Path) -> Path:
    """`var`, if it is a folder that can be written or can be made; nothing is made of it yet."""
    advice = "name another folder (--var, VAR=), or change its rights"
    try:
        nearest = next(path for path in (var, *var.absolute().parents) if path.exists())
    except OSError as error:
        raise TrainingError(f"{var}: cannot be used ({error.strerror}); {advice}") from None
    if not nearest.is_dir():
        raise TrainingError(f"{var}: cannot be used ({nearest} is a file); name a folder (--var, VAR=)")
    # Of a folder that is there, those below may be writable though it is not, as of a volume's.
    if nearest != var and not os.access(nearest, os.W_OK | os.X_OK):
        raise TrainingError(f"{var}: cannot be written (no right to write in {nearest}); {advice}")
    return var


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
    "--var",
    type=click.Path(path_type=Path),
    default=Path("var"),
    show_default=True,
    callback=_writable,
    help="Where all output goes.",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
