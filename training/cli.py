"""The command line of training: `python -m training` trains, `data` checks a dataset, `evaluate` reports on a run."""

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import SPLITS, Dataset
from training.dataset_loading import load_dataset
from training.errors import RunError, TrainingError
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
    """Tune a domain's model (`train`, the default), check its dataset (`data`), or report on a run (`evaluate`).

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


@main.command("data")
@_config
@_data
@_overrides
def check_data(config: Path, data: Path, overrides: tuple[str, ...]) -> None:
    """Check a domain's dataset and show what it holds."""
    settings = load_config(config, overrides)
    console = Console(highlight=False)
    console.print(_dataset_table(settings, load_dataset(settings, data)))


@main.command()
@_config
@_data
@_var
@click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    help="The run's folder  [default: the newest run of config and data, trained first if there is none]",
)
@_overrides
def evaluate(config: Path, data: Path, var: Path, run_path: Path | None, overrides: tuple[str, ...]) -> None:
    """Measure a run beside plain baselines and write its report (docs/evaluation.md)."""
    try:
        from training.evaluation.report import evaluate_run  # noqa: PLC0415 - loads torch and matplotlib
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{error.name} is not installed; install the extra `evaluation`: pip install -e '.[evaluation]'"
        ) from None

    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    settings = load_config(config, overrides)
    run = _run_to_evaluate(settings, data, var, run_path, console)
    folder, tree = evaluate_run(run, data, var)
    console.print(_report_table(tree))
    console.print(f"evaluated in {time.monotonic() - started:.0f} s", markup=False)
    click.echo(f"report: {folder / 'report.md'}")


def _run_to_evaluate(settings: DomainConfig, data: Path, var: Path, run_path: Path | None, console: Console) -> Run:
    if run_path is not None:
        run = Run.open(run_path)
        if run.domain != settings.domain:
            raise RunError(
                f"{run_path}: a run of {run.domain}, the config is of {settings.domain}; name its own config"
            )
        return run
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
