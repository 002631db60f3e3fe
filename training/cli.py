"""The command line of training: `python -m training` trains, `data` checks a dataset, `shots` studies few labels."""

import time
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

from training import processes
from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import SPLITS, Dataset
from training.dataset_loading import fingerprint, load_dataset
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
    """Tune a domain's model (`train`, the default), check its dataset (`data`), study few labels (`shots`).

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
    if not processes.is_main():
        _help(config, data, var, overrides)
        return
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


def _help(config: Path, data: Path, var: Path, overrides: tuple[str, ...]) -> None:
    """What the other processes of `accelerate launch` do: share the tuning, and leave the rest to the main one."""

    def tune() -> None:
        from training.encoder_tuning import help_tuning  # noqa: PLC0415

        plan = make_plan(load_config(config, overrides), data, var)
        help_tuning(plan, load_dataset(plan.config, plan.data))

    processes.help_main_process(tune)


@main.command("data")
@_config
@_data
@_overrides
def check_data(config: Path, data: Path, overrides: tuple[str, ...]) -> None:
    """Check a domain's dataset and show what it holds."""
    settings = load_config(config, overrides)
    console = Console(highlight=False)
    console.print(_dataset_table(settings, load_dataset(settings, data)))


def _counts(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers; write it as 1,2,5,10") from None
    if counts[0] < 0:
        raise click.BadParameter(f"{counts[0]} is below 0")
    return counts


@main.command("shots")
@_config
@_data
@_var
@click.option("--shots", "counts", default="1,2,5,10", show_default=True, callback=_counts, help="Numbers a label.")
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Draws of each number.")
@click.option("--init-from", help="A run, by folder or id: its encoder beside the config's.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@_overrides
def shots(
    config: Path,
    data: Path,
    var: Path,
    counts: list[int],
    draws: int,
    init_from: str | None,
    split: Literal["validation", "test"],
    overrides: tuple[str, ...],
) -> None:
    """Measure heads tuned on few labelled instructions, with and without another run's encoder."""
    from training.shots_report import StudyFacts, cell, write_study  # noqa: PLC0415 - loads torch
    from training.shots_study import study_shots  # noqa: PLC0415

    settings = load_config(config, [*overrides, f"training.shots={counts[0]}"])
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    plans = {"tuned head": make_plan(settings, data, var)}
    if init_from is not None:
        plan = make_plan(settings.model_copy(update={"init_from": init_from}), data, var)
        plans[f"tuned head, encoder of {plan.encoder.run}"] = plan
    found = study_shots(plans, counts, draws, split, lambda line: console.print(line, markup=False))
    table = Table("method", *map(str, counts), title=f"{settings.domain}: top-1 accuracy in % by shots, {split} split")
    for method in dict.fromkeys(one.method for one in found):
        table.add_row(method, *(cell(one) for one in found if one.method == method))
    Console(highlight=False).print(table)
    source = plans["tuned head"].source
    facts = StudyFacts(
        domain=settings.domain,
        source=source.name,
        dataset_fingerprint=fingerprint(source, data)[0],
        weak_labels=any(one.weak_labels for one in source.instructions),
        split=split,
        draws=draws,
        encoders={method: plan.encoder.sha256 for method, plan in plans.items()},
    )
    click.echo(f"report: {write_study(var / 'evaluation' / settings.domain, facts, found)}")


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
        stand_ins = split == "validation" and metrics.get("shots", {}).get("stand_ins", 0)
        texts = "item titles" if stand_ins else "instructions"
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
