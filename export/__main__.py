"""Command line of the export room: `python -m export` makes the run of a config and dataset into a release."""

from __future__ import annotations

import time
from pathlib import Path

import click

from export.errors import ExportError
from export.settings import PRECISIONS, Precision
from export.tensorrt.module import require_gpu_build
from serving.layout import Layout
from training.config_loading import load_config
from training.plan import existing_run, make_plan


@click.command(help=__doc__)
@click.option("--config", "config_path", type=click.Path(path_type=Path), required=True, help="The domain's YAML.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="The directory of datasets.",
)
@click.option(
    "--var",
    type=click.Path(path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where all that is produced lies.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config_path: Path, data: Path, var: Path, precision: Precision, overrides: tuple[str, ...]) -> None:
    """Find the run, export it, and say which release it became."""
    started = time.monotonic()
    if precision.startswith("trt-"):
        require_gpu_build()
    config = load_config(config_path, overrides)
    run = existing_run(make_plan(config, data, var))
    if run is None:
        raise ExportError(f"there is no run of {config_path} and {data} in {var}; run `make train` first")
    from export.release import export_release  # noqa: PLC0415 - loads torch; the checks above should not wait for it

    exported = export_release(run, config, Layout(var), precision)
    release = exported.release
    if not exported.is_new:
        click.echo(f"release {release.number} is up to date")
    else:
        click.echo(f"run {run.run_id} exported as {precision} and verified in {time.monotonic() - started:.0f} s")
        verification = release.manifest.verification
        on_the_way = [graph for graph in verification if graph.endswith(".onnx")][:-1]
        for graph, checks in verification.items():
            verdict = "on the way" if graph in on_the_way else "taken"
            click.echo(
                f"  {graph} ({verdict}): " + ", ".join(f"{name} {measured:.5g}" for name, measured in checks.items())
            )
    click.echo(f"release: {release.path}")


if __name__ == "__main__":
    main()
