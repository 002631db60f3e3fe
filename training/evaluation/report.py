"""Writes the report of a run: report.md, report.json and the plots, whole or not at all."""

import json
from pathlib import Path

from training.atomic import new_folder
from training.errors import TrainingError
from training.evaluation.inputs import Settings
from training.evaluation.markdown import render
from training.evaluation.measure import Tree, measure_run
from training.evaluation.plots import draw_plots
from training.run import Run


def evaluate_run(run: Run, data: Path, var: Path, settings: Settings | None = None) -> tuple[Path, Tree]:
    """Measure `run` and write its report into `var`/evaluation/<domain>/<run_id>/, in place of an older one.

    Returns:
        The folder, and the content of its report.json.

    Raises:
        RunError: A file of the run is damaged.
        EncoderError: The encoder that the run's was tuned from cannot be found.
        TrainingError: The report cannot be written.
    """
    settings = settings or Settings(seed=run.config.training.seed)
    tree = measure_run(run, data, var, settings)
    target = var / "evaluation" / run.domain / run.run_id
    try:
        _write(target, tree)
    except OSError as error:
        raise TrainingError(
            f"{target}: cannot be written ({error.strerror}); free some space or check its rights"
        ) from None
    return target, tree


def _write(target: Path, tree: Tree) -> None:
    with new_folder(target, replace=True) as folder:
        plots = draw_plots(tree, folder)
        text = json.dumps(tree, ensure_ascii=False, indent=2, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.md").write_text(render(tree, plots), encoding="utf-8")
