"""`python -m training shots`: measures heads tuned on few labelled instructions."""

from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

from training.config_loading import load_config
from training.dataset_loading import fingerprint
from training.options import config_option, data_option, overrides_argument, var_option
from training.plan import make_plan


def _counts(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers; write it as 1,2,5,10") from None
    if counts[0] < 0:
        raise click.BadParameter(f"{counts[0]} is below 0")
    return counts


@click.command("shots")
@config_option
@data_option
@var_option
@click.option("--shots", "counts", default="1,2,5,10", show_default=True, callback=_counts, help="Numbers a label.")
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Draws of each number.")
@click.option("--init-from", help="A run, by folder or id: its encoder beside the config's.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@overrides_argument
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
