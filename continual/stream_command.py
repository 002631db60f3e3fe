"""The command that measures the loop's way of tuning on a stream of a domain's dated items."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click
import numpy as np

from training.config import DomainConfig
from training.config_loading import load_config
from training.dataset import Item
from training.dataset_loading import load_dataset
from training.embedding_cache import EmbeddingCache
from training.encoder_source import locate_encoder
from training.model import InstructionModel
from training.options import config_option, data_option, overrides_argument, var_option

from .errors import ContinualError
from .settings import ContinualSettings
from .stream import Stream, System, continual, equal_steps, follow_stream, full_retraining, naive_tuning, parts_of
from .stream_report import draw, markdown, numbers


@click.command()
@config_option
@data_option
@var_option
@click.option("--steps", type=click.IntRange(min=2), default=8, show_default=True)
@overrides_argument
def stream(config: Path, data: Path, var: Path, steps: int, overrides: tuple[str, ...]) -> None:
    """Measure how re-tuning holds on a stream: the titles of a domain's items by date, their labels to be told.

    The catalogue's `released` column orders them: sources.<name>.catalogue.released=<column>
    """
    settings = load_config(config, overrides)
    cut = open_stream(settings, load_dataset(settings, data).items, var, steps)
    chosen = ContinualSettings.read(settings.continual)
    systems = [
        System("full retraining", full_retraining),
        continual(chosen),
        continual(chosen, holds=False),
        continual(chosen, replays=False),
        System("naive fine-tuning", naive_tuning),
    ]
    courses = [follow_stream(cut, system, say=lambda line: click.echo(line, err=True)) for system in systems]
    folder = var / "continual"
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(cut, courses)
    name = f"{settings.domain}-stream"
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    (folder / f"{name}.json").write_bytes(numbers(cut, courses))
    title = f"{settings.domain}: {len(cut.label_ids):,} texts, {len(cut.labels)} labels, {cut.spans[0]} and on"
    draw(cut, courses, folder / f"{name}.png", title)
    click.echo(table)
    click.echo(f"report: {folder / name}.md, .json, .png")


def open_stream(config: DomainConfig, items: tuple[Item, ...], var: Path, steps: int) -> Stream:
    """The dated items' titles as a stream; their vectors are kept in the embedding cache.

    Raises:
        ContinualError: too few items have a date.
    """
    dated = [(item.released, item) for item in items if item.released is not None]
    if len(dated) < 20 * steps:
        raise ContinualError(
            f"{len(dated)} items have a date, {steps} steps need {20 * steps}; name the column of the date: "
            "sources.<name>.catalogue.released=<column>"
        )
    moments, texts = np.array([moment for moment, _ in dated]), [item.title for _, item in dated]
    labels = tuple(sorted({item.label for _, item in dated}))
    ids = {label: number for number, label in enumerate(labels)}
    step = equal_steps(moments, steps)
    encoder, settings = locate_encoder(config.encoder), config.encoder
    cache = EmbeddingCache.below(var, encoder, settings.pooling, settings.max_length)
    model = InstructionModel.from_folder(encoder.folder, settings.pooling, settings.max_length, labels=len(labels))
    return Stream(
        vectors=cache.embed(model, texts, config.training.embedding_batch_size),
        label_ids=np.array([ids[item.label] for _, item in dated], dtype=np.int64),
        labels=labels,
        step=step,
        part=parts_of(texts),
        spans=tuple(_day(moments[step == one].min()) for one in range(steps)),
    )


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, tz=timezone.utc).strftime("%Y-%m-%d")
