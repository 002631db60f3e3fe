"""`python -m preflight`: validate all sections of a domain's YAML, in the rooms that read them, before a training.

Nothing here loads torch or a dataset: what is wrong is said within a second or two.
"""

from pathlib import Path

import click

from continual.settings import ContinualSettings
from export.errors import ExportError
from export.settings import PRECISIONS, Precision, read_settings
from loadtest.sla import read_sla
from serving.gates import settings as gates
from training.config_loading import load_config
from training.options import config_option, overrides_argument


@click.command(help=__doc__)
@config_option
@click.option("--precision", default="int8", show_default=True, help="What the encoder's graph will be made in.")
@overrides_argument
def main(config: Path, precision: str, overrides: tuple[str, ...]) -> None:
    """Say nothing, or what is wrong in one line."""
    known: dict[str, Precision] = {name: name for name in PRECISIONS}
    if precision not in known:
        raise ExportError(f"{precision!r} is no precision (--precision, PRECISION=); there are {', '.join(known)}")
    settings = load_config(config, overrides)
    read_settings(settings, known[precision])
    gates.read_settings(config, overrides)
    ContinualSettings.read(settings.continual)
    if settings.sla:  # optional until there is a load test
        read_sla(config, overrides)


if __name__ == "__main__":
    main()
