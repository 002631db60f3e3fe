"""Command line of the export room: `python -m export` makes a run into a release."""

from __future__ import annotations

import time
from pathlib import Path

import click

from export.errors import ExportError
from export.settings import PRECISIONS, Precision
from export.tensorrt.module import require_gpu_build
from serving.layout import Layout
from training.config import DomainConfig
from training.config_loading import load_config
from training.options import config_option, data_option, overrides_argument, var_option
from training.run import Run
from training.run_encoder import named_run
from training.run_listing import derived_from


@click.command(help=__doc__)
@config_option
@data_option
@var_option
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True)
@click.option(
    "--run",
    "run_name",
    help="The run's folder or id  [default: the run that was trained of config and data]",
)
@click.option(
    "--reuse/--no-reuse",
    default=True,
    show_default=True,
    help="Take the encoder over from a release that has the same one, or the FP32 graph that the export before kept.",
)
@overrides_argument
def main(
    config: Path,
    data: Path,
    var: Path,
    precision: Precision,
    run_name: str | None,
    reuse: bool,
    overrides: tuple[str, ...],
) -> None:
    """Find the run, export it, and say which release it became."""
    started = time.monotonic()
    if precision.startswith("trt-"):
        require_gpu_build()
    settings = load_config(config, overrides)
    run, newer = (
        (named_run(run_name, var / "runs", settings.domain), []) if run_name else _trained(settings, config, data, var)
    )
    from export.release import export_release  # noqa: PLC0415 - loads much; the checks above should not wait for it

    exported = export_release(run, settings, Layout(var), precision, reuse=reuse, say=_warn)
    release = exported.release
    if not exported.is_new:
        click.echo(f"release {release.number} is up to date")
    else:
        taken = f", encoder of release {exported.taken_from}" if exported.taken_from else ""
        seconds = time.monotonic() - started
        click.echo(f"run {run.run_id} exported as {precision}{taken} and verified in {seconds:.1f} s")
        verification = release.manifest.verification
        # A report of another engine than ONNX Runtime names it behind the file.
        files = {graph: graph.partition(" in ")[0] for graph in verification}
        on_the_way = list(dict.fromkeys(file for file in files.values() if file.endswith(".onnx")))[:-1]
        for graph, checks in verification.items():
            verdict = "on the way" if files[graph] in on_the_way else "taken"
            click.echo(
                f"  {graph} ({verdict}): " + ", ".join(f"{name} {measured:.5g}" for name, measured in checks.items())
            )
    if newer:
        reason = newer[0].manifest.derived_from.reason if newer[0].manifest.derived_from else ""
        click.echo(
            f"note: {len(newer)} newer run(s) were derived from this one, the last by {reason}; they are not in this "
            f"release. To export that one: make export RUN={newer[0].path}"
        )
    click.echo(f"release: {release.path}")


def _trained(config: DomainConfig, config_path: Path, data: Path, var: Path) -> tuple[Run, list[Run]]:
    """The run that was trained of config and data, and the runs that were derived from it since, newest first."""
    from training.plan import existing_run, make_plan  # noqa: PLC0415 - loads pandas

    plan = make_plan(config, data, var)
    run = existing_run(plan)
    if run is None:
        raise ExportError(f"there is no run of {config_path} and {data} in {var}; run `make train` first")
    return run, derived_from(run, plan.runs)


def _warn(line: str) -> None:
    click.echo(f"Warning: {line}", err=True)


if __name__ == "__main__":
    main()
