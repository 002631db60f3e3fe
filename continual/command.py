"""The command line of the loop."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from export.followed import Followed
from feedback.access import why
from serving.gates.settings import read_settings
from serving.layout import Layout
from serving.preconditions import refuse_to_undo_a_rollback
from serving.releases import Release
from training.config_loading import load_config
from training.options import config_option, overrides_argument, var_option
from training.run import Run

from .errors import ContinualError
from .tuner import Say, Tuner


class _Commands(click.Group):
    """Loads `stream` only when it is asked for: it needs torch and matplotlib, the others should not wait for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "stream"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "stream":
            from .stream_command import stream  # noqa: PLC0415

            return stream
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands)
def main() -> None:
    """Teach the live release's head what people did with its answers."""


@main.command()
@config_option
@var_option
@click.option(
    "--since", type=click.IntRange(min=0), help="Read from after this event on, whatever was learned or refused before."
)
@overrides_argument
def tune(config: Path, var: Path, since: int | None, overrides: tuple[str, ...]) -> None:
    """Learn the feedback that is new, and export a release with another head; `make deploy` makes it live."""
    started = time.monotonic()
    tuner = open_tuner(config, var, overrides, click.echo)
    with only_one(tuner):
        followed = Followed.now(tuner.layout, tuner.config.domain)
        turn = tuner.turn(since)
    click.echo(turn.line)
    if turn.release is not None:
        click.echo(f"release: {turn.release.path} ({time.monotonic() - started:.1f} s)")
    else:
        waiting = None if turn.waiting is None else turn.waiting.number
        refuse_to_undo_a_rollback(tuner.layout, tuner.config.domain, waiting)
    if made := turn.release or turn.waiting:
        followed.check_before_deploy(made, "tune")


@main.command()
@config_option
@var_option
@click.option("--every", type=click.FloatRange(min=1), help="Seconds between two turns.")
@click.option("--events", type=click.IntRange(min=1), help="New events that start a turn.")
@overrides_argument
def follow(config: Path, var: Path, every: float | None, events: int | None, overrides: tuple[str, ...]) -> None:
    """Learn feedback as it comes, and make each release live, until stopped (SIGINT or SIGTERM)."""
    from .follow import Follower  # noqa: PLC0415 - loads what a turn needs, torch among it

    if every is None and events is None:
        raise click.UsageError("say when to tune: --every=<seconds>, --events=<number of new events>, or both")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    gates = read_settings(config, overrides).gates
    tuner = open_tuner(config, var, overrides, logging.getLogger("continual").info)
    with only_one(tuner):
        Follower(tuner, every, events, gates).run()


def open_tuner(config: Path, var: Path, overrides: tuple[str, ...], say: Say) -> Tuner:
    """The tuner of a domain's YAML, which exports as the live release was exported."""
    settings = load_config(config, overrides)

    def export(run: Run, before: Release) -> Release:
        from .exporting import export_after  # noqa: PLC0415 - loads torch, which a turn without feedback does without

        return export_after(run, before, config, overrides, Layout(var))

    return Tuner(settings, var, export, say)


@contextmanager
def only_one(tuner: Tuner) -> Iterator[None]:
    """Hold the domain's lock, which the kernel drops when its holder dies.

    Raises:
        ContinualError: another tuning of the domain runs, or the lock cannot be taken.
    """
    path = tuner.ledger.path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise ContinualError(f"{path}: cannot be written: {why(error, path)}") from None
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ContinualError(
                f"another tuning of {tuner.config.domain} runs (make follow?); wait for it, or stop it"
            ) from None
        yield
