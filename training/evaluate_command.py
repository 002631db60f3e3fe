"""`python -m training evaluate`: reports on a run beside plain baselines."""

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from training.config import READ_LATER, DomainConfig
from training.config_loading import load_config
from training.errors import ConfigError
from training.optional_packages import require
from training.options import config_option, data_option, overrides_argument, var_option
from training.plan import existing_run, make_plan
from training.run import Run
from training.run_encoder import named_run


@click.command("evaluate")
@config_option
@data_option
@var_option
@click.option(
    "--run",
    "run_name",
    help="The run's folder or id  [default: the newest run of config and data, trained first if there is none]",
)
@overrides_argument
def evaluate(config: Path, data: Path, var: Path, run_name: str | None, overrides: tuple[str, ...]) -> None:
    """Measure a run beside plain baselines and write its report (docs/evaluation.md)."""
    for package in ("bm25s", "matplotlib"):
        require(package, "evaluation")
    from training.evaluation.report import evaluate_run  # noqa: PLC0415 - loads torch and matplotlib

    trained_with = [one for one in overrides if one.partition("=")[0].partition(".")[0] not in READ_LATER]
    if run_name is not None and trained_with:  # what is meant for `make evaluate export` may stand here too
        raise ConfigError(
            f"{trained_with[0]}: changes nothing of a run that is finished; leave it out, or name no run (--run, RUN=)"
        )
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    settings = load_config(config, overrides)
    run = _run_to_evaluate(settings, data, var, run_name, console)
    folder, tree = evaluate_run(run, data, var)
    console.print(_report_table(tree))
    console.print(f"evaluated in {time.monotonic() - started:.0f} s", markup=False)
    click.echo(f"report: {folder / 'report.md'}")


def _run_to_evaluate(settings: DomainConfig, data: Path, var: Path, run_name: str | None, console: Console) -> Run:
    if run_name is not None:
        return named_run(run_name, var / "runs", settings.domain)
    plan = make_plan(settings, data, var)
    existing = existing_run(plan)
    if existing is not None:
        return existing
    from training.train import train_run  # noqa: PLC0415 - loads torch

    return train_run(plan, lambda line: console.print(line, markup=False))


def _report_table(tree: dict[str, Any]) -> Table:
    from training.evaluation.markdown import glance_rows  # noqa: PLC0415 - belongs to an optional extra

    weak = ", weak labels" if tree["dataset"]["weak_labels"] else ""
    table = Table(title=f"{tree['run']['domain']}: 95 % intervals in brackets{weak}")
    table.add_column("metric")
    for name in ("run", "best plain baseline", "difference"):
        table.add_column(name, justify="right")
    for row in glance_rows(tree):
        table.add_row(*row)
    return table
