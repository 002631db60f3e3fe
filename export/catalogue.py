"""`python -m export.catalogue` brings newer items and events into a release, with the encoder and head of now."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click

from export.errors import ExportError
from export.followed import Followed
from export.kept_settings import overrides_of, precision_of
from export.release import export_release
from export.settings import PRECISIONS, Precision, read_settings
from export.tensorrt.module import require_gpu_build
from serving.canary.journal import CanaryJournal
from serving.journal import Journal
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.preconditions import refuse_to_undo_a_rollback
from serving.releases import Release, ReleaseStore
from training.catalogue_update import update_catalogue
from training.config_loading import load_config
from training.options import config_option, data_option, overrides_argument, var_option
from training.run import Run
from training.run_encoder import named_run
from training.run_listing import equal_run, newest_run


@click.command(help=__doc__)
@config_option
@data_option
@var_option
@click.option(
    "--run",
    "run_name",
    help="The run to derive from, its folder or id  [default: that of the live release, else of the newest release, "
    "else the newest run]",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of the encoder  [default: as the live release has it, else int8]",
)
@click.option("--shrink", is_flag=True, help="Let more than half of the items, or of the people with events, go.")
@overrides_argument
def main(
    config: Path,
    data: Path,
    var: Path,
    run_name: str | None,
    precision: Precision | None,
    shrink: bool,
    overrides: tuple[str, ...],
) -> None:
    """Compare the catalogues, derive a run, export it."""
    started = time.monotonic()
    layout, domain = Layout(var), load_config(config).domain
    followed, before = Followed.now(layout, domain), release_before(layout, domain)
    kept = () if before is None else overrides_of(before)
    settings = load_config(config, (*kept, *overrides))
    run = named_run(run_name, layout.var / "runs", domain) if run_name else _run_of(layout, domain, before)
    wanted = precision or ("int8" if before is None else precision_of(before))
    read_settings(settings, wanted)  # refused before a run is derived
    if wanted.startswith("trt-"):
        require_gpu_build()
    derived = update_catalogue(run, settings, data, layout.var, say=click.echo, may_shrink=shrink)
    if derived is None:
        refuse_to_undo_a_rollback(layout, domain)
        return
    # Repeated before a deploy, it would make another release of the same.
    earlier = equal_run(derived, layout.var / "runs" / domain)
    if earlier is not None:
        shutil.rmtree(derived.path, ignore_errors=True)
    made = earlier or derived
    click.echo(f"run: {made.path}")
    exporting = time.monotonic()
    try:
        exported = export_release(made, settings, layout, wanted, say=_warn)
    except BaseException:
        if earlier is None:
            shutil.rmtree(derived.path, ignore_errors=True)  # the next try derives it again
        raise
    if not exported.is_new:
        waiting = exported.release.number
        refuse_to_undo_a_rollback(layout, domain, None if _has_answered(layout, domain, waiting) else waiting)
        click.echo(f"release {waiting} is up to date: {exported.release.path}")
    else:
        taken = f", encoder of release {exported.taken_from}" if exported.taken_from else ""
        click.echo(f"exported as {wanted}{taken} and verified in {time.monotonic() - exporting:.1f} s")
        click.echo(f"release: {exported.release.path} ({time.monotonic() - started:.1f} s in all)")
    followed.check_before_deploy(exported.release, "catalogue")


def release_before(layout: Layout, domain: str) -> Release | None:
    """The release whose place the next one takes; None if there is none.

    That is the live one, else the newest, as where the live one's folder is gone.
    """
    store = ReleaseStore(layout.releases(domain))
    live = LiveRepository(layout.live).live_release(domain)
    numbers = store.numbers()
    if live is not None and live.number in numbers:
        return store.open(live.number)
    return store.open(numbers[-1]) if numbers else None


def _has_answered(layout: Layout, domain: str, number: int) -> bool:
    """Whether a release was live or a canary once: that it is not live now is meant so."""
    journals = (Journal(layout.journal(domain)).publications(), CanaryJournal(layout.canary_journal(domain)).events())
    return any(one.release == number for journal in journals for one in journal)


def _run_of(layout: Layout, domain: str, release: Release | None) -> Run:
    """The run that a release was made of, or the newest run where no release is there.

    Raises:
        ExportError: there is no such run.
    """
    runs = layout.var / "runs" / domain
    if release is not None:
        path = runs / release.manifest.run_id
        if not path.is_dir():
            raise ExportError(f"{path}, which release {release.number} was made of, is gone; name another with RUN=")
        return Run.open(path)
    found = newest_run(runs)
    if found is None:
        raise ExportError(f"there is no run in {runs}; run `make export` first")
    return found


def _warn(line: str) -> None:
    click.echo(f"Warning: {line}", err=True)


if __name__ == "__main__":
    main()
