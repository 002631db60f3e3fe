"""`python -m training search`: searches the settings that do best on validation."""

import shlex
from pathlib import Path

import click
from rich.console import Console

from training.config_loading import load_config
from training.optional_packages import require
from training.options import config_option, data_option, overrides_argument, var_option


@click.command("search")
@config_option
@data_option
@var_option
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at work at once.")
@overrides_argument
def search(config: Path, data: Path, var: Path, workers: int, overrides: tuple[str, ...]) -> None:
    """Search the settings of `search.space` that do best on validation; a search that was cut off goes on."""
    require("optuna", "search")
    require("matplotlib", "search")
    from training.search import make_search, run_search  # noqa: PLC0415 - loads optuna and torch
    from training.search_report import best_values, importances_table, trials_table, write_report  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    planned = make_search(load_config(config, overrides), data, var)
    study = run_search(planned, workers, lambda line: console.print(line, markup=False))
    best = best_values(planned, study)
    console.print(trials_table(planned, study))
    console.print(importances_table(study, planned.config.search.seed))
    for path in write_report(planned, study):
        console.print(f"written: {path}", markup=False)
    kept = [override for override in overrides if not override.startswith("search.")]
    train_with = ["--config", str(config), "--data", str(data), "--var", str(var), *kept, *best]
    console.print(f"train with the best: {shlex.join(['python', '-m', 'training', *train_with])}", markup=False)
