"""TensorRT on this machine: `check` says what is missing, `graphs` writes what `bench` measures."""

from __future__ import annotations

from pathlib import Path

import click

from export.tensorrt.module import gpu_failures_in_one_line, require_gpu_build
from serving.engines.fingerprint import Fingerprint


@click.group(help=__doc__)
def main() -> None:
    """Gather the commands."""


@main.command()
@gpu_failures_in_one_line()
def check() -> None:
    """Say whether an engine can be built here; exit with 1 and one line if not."""
    here = Fingerprint.here(require_gpu_build().__version__)
    click.echo(
        f"{here.gpu} (compute capability {here.compute_capability}), driver {here.driver}, TensorRT {here.tensorrt}"
    )


@main.command()
@click.option("--run", "run_path", type=click.Path(path_type=Path), required=True, help="A run's folder.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where the graphs are written.")
def graphs(run_path: Path, output: Path) -> None:
    """Write a run's FP16 graph and its symmetric INT8 form, verified on the CPU; needs no GPU."""
    from export.gpu_graphs import GpuGraphs  # noqa: PLC0415 - loads torch
    from export.onnx_graph import export_encoder  # noqa: PLC0415
    from export.settings import ExportSettings, ServingSettings  # noqa: PLC0415
    from export.texts import calibration_texts, verified_instructions  # noqa: PLC0415
    from training.run import Run  # noqa: PLC0415

    run, settings = Run.open(run_path), ExportSettings()
    output.mkdir(parents=True, exist_ok=True)
    model = run.load_model()
    builder = GpuGraphs(
        model,
        ServingSettings().buckets_up_to(model.max_length),
        ServingSettings().max_batch_size,
        calibration_texts(run, settings.calibration_texts),
        [one.text for one in verified_instructions(run, settings.verification_texts)],
        run.item_vectors(),
        output,
    )
    fp32 = output / "encoder-fp32.onnx"
    export_encoder(model, fp32)
    made = builder.build("fp16", fp32)
    reports = [*made.reports, *builder.quantize(fp32, made.path, output / "encoder-int8-symmetric.onnx")]
    click.echo("\n".join(report.markdown() for report in reports))


@main.command()
@click.option("--fp16", type=click.Path(exists=True, path_type=Path), required=True, help="The FP16 graph.")
@click.option("--int8", type=click.Path(exists=True, path_type=Path), help="The symmetric INT8 graph.")
@click.option("--encoder", type=click.Path(exists=True, path_type=Path), help="A Hugging Face folder, for torch FP16.")
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Where to keep the figures as JSON.")
@gpu_failures_in_one_line()
def bench(fp16: Path, int8: Path | None, encoder: Path | None, rounds: int, output: Path | None) -> None:
    """Measure torch FP16, the FP16 engine and the INT8 engine at lengths 16 to 128 and batches 1, 8 and 32."""
    trt = require_gpu_build()
    from export.tensorrt import bench as measuring  # noqa: PLC0415 - what is missing is said before anything is loaded

    runners = {"torch FP16": measuring.torch_runner(encoder)} if encoder else {}
    runners["TensorRT FP16"] = measuring.engine_runner(trt, fp16, "fp16")
    if int8:
        runners["TensorRT INT8"] = measuring.engine_runner(trt, int8, "int8")
    where = measuring.machine(trt.__version__)
    found = measuring.measure(runners, rounds=rounds)
    if output:
        measuring.write(output, where, found)
    click.echo(measuring.markdown(where, found))


if __name__ == "__main__":
    main()
