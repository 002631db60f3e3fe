"""The command line of training: `python -m training` trains, `python -m training data` checks a dataset."""

import shlex
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import SPLITS, Dataset
from training.dataset_loading import load_dataset
from training.optional_packages import require
from training.plan import existing_run, make_plan
from training.run import Run


class _TrainByDefault(click.Group):
    """A group whose first argument need not be a command: then the command is `train`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["train", *args]
        return super().parse_args(ctx, args)


_config = click.option(
    "--config", type=click.Path(path_type=Path), required=True, help="The domain's YAML, as configs/ecommerce.yaml."
)
_data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="The directory of datasets.",
)
_var = click.option(
    "--var", type=click.Path(path_type=Path), default=Path("var"), show_default=True, help="Where all output goes."
)
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group(cls=_TrainByDefault)
def main() -> None:
    """Tune a domain's model (`train`, the default), search its settings (`search`) or check its dataset (`data`).

    KEY=VALUE overrides a value of the YAML: training.epochs=100
    """


@main.command()
@_config
@_data
@_var
@click.option(
    "--print-run", is_flag=True, help="Write only the run's path to standard output, the rest to standard error."
)
@_overrides
def train(config: Path, data: Path, var: Path, print_run: bool, overrides: tuple[str, ...]) -> None:
    """Tune head and score weights and write a run; a run of the same inputs is used again."""
    console = Console(stderr=print_run, highlight=False, soft_wrap=True)
    started = time.monotonic()
    plan = make_plan(load_config(config, overrides), data, var)
    run = existing_run(plan)
    if run is not None:
        console.print(f"run {run.run_id} is up to date", markup=False)
    else:
        from training.train import train_run  # noqa: PLC0415 - loads torch, which a run that exists has no need of

        run = train_run(plan, lambda line: console.print(line, markup=False))
        console.print(_metrics_table(run))
        console.print(f"trained in {time.monotonic() - started:.0f} s", markup=False)
    if print_run:
        click.echo(run.path)
    else:
        click.echo(f"run: {run.path}")


@main.command()
@_config
@_data
@_var
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at work at once.")
@_overrides
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


@main.command("data")
@_config
@_data
@_overrides
def check_data(config: Path, data: Path, overrides: tuple[str, ...]) -> None:
    """Check a domain's dataset and show what it holds."""
    settings = load_config(config, overrides)
    console = Console(highlight=False)
    console.print(_dataset_table(settings, load_dataset(settings, data)))


def _dataset_table(config: DomainConfig, dataset: Dataset) -> Table:
    table = Table(title=f"{config.domain}: source {dataset.source}", show_header=False)
    table.add_row("items", f"{len(dataset.items):,}")
    table.add_row("labels", f"{len(dataset.labels):,}{' (weak)' if dataset.weak_labels else ''}")
    for split in SPLITS:
        table.add_row(f"instructions, {split}", f"{len(dataset.split(split)):,}")
    table.add_row("interactions", f"{len(dataset.interactions):,}")
    table.add_row("people", f"{len({event.user_id for event in dataset.interactions}):,}")
    for name, digest in dataset.files.items():
        table.add_row(name, f"sha256 {digest[:16]}…")
    for note in dataset.notes:
        table.add_row("note", note)
    return table


def _metrics_table(run: Run) -> Table:
    metrics = run.manifest.metrics
    weak = ", weak labels" if metrics["weak_labels"] else ""
    table = Table(title=f"{run.domain}: tuned (zero-shot: similarity alone){weak}")
    table.add_column("metric")
    splits = [split for split in SPLITS if split in metrics]
    for split in splits:
        table.add_column(f"{split}, {metrics[split]['instructions']} instructions", justify="right")
    for part, names in (("labels", ("top1_accuracy", "top3_accuracy")), ("ranking", ("ndcg@10", "recall@10", "mrr"))):
        for name in names:
            cells = [f"{metrics[s][part][name]:.3f} ({metrics[s][part + '_zero_shot'][name]:.3f})" for s in splits]
            table.add_row(name, *cells)
    if "history" in metrics:
        found = metrics["history"]
        value, without = found["ranking"]["ndcg@10"], found["ranking_without_history"]["ndcg@10"]
        table.caption = (
            f"next item of {found['people_held_out']} held-out people: "
            f"ndcg@10 {value:.3f}, without their history {without:.3f}"
        )
    return table
