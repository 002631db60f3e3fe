"""Options that several commands of this room share."""

from collections.abc import Iterable
from pathlib import Path

import click

from .gates.settings import Settings, read_settings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

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
    help="The domain's YAML, for its sections `gates` and `canary`; the project's configs/<domain>.yaml if left out.",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def domain_settings(config: Path | None, domain: str, overrides: Iterable[str]) -> Settings:
    """What a domain's YAML says of gates and canaries; of a domain that has none, the defaults.

    Args:
        config: the YAML that was named; None: the project's own for the domain.
        domain: the domain.
        overrides: as for `read_settings`.

    Raises:
        ServingError: as `read_settings`.
    """
    own = CONFIGS / f"{domain}.yaml"
    return read_settings(config or (own if own.is_file() else None), overrides)
