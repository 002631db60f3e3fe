"""The command line of training: `python -m training` trains; `--help` lists what else there is."""

import time
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from training import processes
from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import SPLITS, Dataset
from training.dataset_loading import load_dataset
from training.evaluate_command import evaluate
from training.options import config_option, data_option, overrides_argument, var_option
from training.plan import existing_run, make_plan
from training.run import Run
from training.search_command import search
from training.shots_command import shots

COMPARED_BY = 50
"""Test instructions that two releases must share, unless the YAML says otherwise: the default of that setting."""


class _TrainByDefault(click.Group):
    """A group whose first argument need not be a command: then the command is `train`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["train", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_TrainByDefault)
def main() -> None:
    """Tune a domain's model (`train`, the default), or do what one of the other commands says.

    KEY=VALUE overrides a value of the YAML: training.epochs=100
    """


@main.command()
@config_option
@data_option
@var_option
@click.option(
    "--print-run", is_flag=True, help="Write only the run's path to standard output, the rest to standard error."
)
@overrides_argument
def train(config: Path, data: Path, var: Path, print_run: bool, overrides: tuple[str, ...]) -> None:
    """Tune head and score weights and write a run; a run of the same inputs is used again."""
    if not processes.is_main():
        _help(config, data, var, overrides)
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
    processes.finish()
    if print_run:
        click.echo(run.path)
    else:
        click.echo(f"run: {run.path}")


def _help(config: Path, data: Path, var: Path, overrides: tuple[str, ...]) -> NoReturn:
    """What the other processes of `accelerate launch` do: share the tuning, and leave the rest to the main one."""

    def tune() -> None:
        from training.augmentation import prepare_dataset  # noqa: PLC0415 - loads torch
        from training.encoder_tuning import help_tuning  # noqa: PLC0415

        plan = make_plan(load_config(config, overrides), data, var)
        # The teacher's vectors are in the cache by now: the main process asks for help once it has the dataset.
        dataset, _ = prepare_dataset(plan, load_dataset(plan.config, plan.data), lambda _: None)
        help_tuning(plan, dataset)

    processes.help_main_process(tune)


@main.command("data")
@config_option
@data_option
@overrides_argument
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
    for note in (*dataset.notes, *_note_gates(config, dataset)):
        table.add_row("note", note)
    return table


def _note_gates(config: DomainConfig, dataset: Dataset) -> list[str]:
    """That a later release cannot be compared with the first one, where that is so."""
    needed = config.gates.get("min_instructions", COMPARED_BY)
    tested = len(dataset.split("test"))
    if not isinstance(needed, int) or tested >= needed:  # what is no number is refused by the room that reads it
        return []
    return [
        f"{tested} test instructions: a release that replaces a live one is compared with it on {needed} "
        "(gates.min_instructions), so it will need FORCE=yes; mark more rows as test, or set a lower number"
    ]


def _metrics_table(run: Run) -> Table:
    metrics = run.manifest.metrics
    weak = ", weak labels" if metrics["weak_labels"] else ""
    table = Table(title=f"{run.domain}: tuned (zero-shot: similarity alone){weak}")
    table.add_column("metric")
    splits = [split for split in SPLITS if split in metrics]
    for split in splits:
        stand_ins = split == "validation" and metrics.get("shots", {}).get("stand_ins", 0)
        texts = "stand-ins" if stand_ins else "instructions"
        table.add_column(f"{split}, {metrics[split]['instructions']} {texts}", justify="right")
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


main.add_command(shots)
main.add_command(evaluate)
main.add_command(search)
