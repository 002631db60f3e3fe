"""Measures a run: all that the report says, as one tree of plain values."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.evaluation.baselines import fit_baselines
from training.evaluation.bootstrap import LEVEL, Bootstrap
from training.evaluation.calibration import TEMPERATURES, best_temperature, measure_calibration
from training.evaluation.catalogue_ranking import SYSTEMS, Bm25, Ranked, compare_rankings, rank_catalogue
from training.evaluation.confusion import confusions
from training.evaluation.coverage import measure_coverage, popularity
from training.evaluation.inputs import HELD_OUT, Inputs, Settings, SplitInputs, read_inputs
from training.evaluation.label_task import LabelScores, compare_labels, label_details
from training.evaluation.learning_curve import learning_curve
from training.evaluation.machine import machine_fingerprint
from training.evaluation.robustness import measure_robustness
from training.run import Run

SCHEMA_VERSION = 1
DIGITS = 6
Tree = dict[str, Any]


def measure_run(run: Run, data: Path, var: Path, settings: Settings) -> Tree:
    """The content of report.json: equal runs give equal trees on one machine, but for `timings`.

    Raises:
        RunError: A file of the run is damaged.
        EncoderError: The encoder that the run's was tuned from cannot be found.
    """
    return _Measurement(run, data, var, settings).tree()


class _Measurement:
    """The stages, in order; each adds one section and how long it took."""

    def __init__(self, run: Run, data: Path, var: Path, settings: Settings) -> None:
        self._run, self._data, self._var, self._settings = run, data, var, settings
        self._seconds: dict[str, float] = {}
        self._test: tuple[SplitInputs, dict[str, Ranked]] | None = None

    def tree(self) -> Tree:
        stages: dict[str, Callable[[], Any]] = {
            "label_task": self._label_task,
            "labels": self._labels,
            "ranking": self._ranking,
            "calibration": self._calibration,
            "robustness": self._robustness,
            "coverage": self._coverage,
            "learning_curve": self._learning_curve,
        }
        sections: Tree = {}
        with tqdm(total=len(stages) + 1, desc="evaluation", unit="stage", disable=None) as bar:
            bar.set_postfix_str("vectors")
            self._timed("vectors", self._read)
            for name, measure in stages.items():
                bar.update()
                bar.set_postfix_str(name)
                sections[name] = self._timed(name, measure)
            bar.update()
        header = {"schema_version": SCHEMA_VERSION, **describe_run(self._inputs), "machine": machine_fingerprint()}
        history = self._run.manifest.metrics.get("history")
        tree: Tree = plain({**header, **sections, "history": history})
        tree["timings"] = {name: round(seconds, 2) for name, seconds in self._seconds.items()}
        return tree

    def _timed(self, name: str, measure: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = measure()
        self._seconds[name] = time.monotonic() - started
        return result

    def _read(self) -> None:
        self._inputs = read_inputs(self._run, self._var, self._settings)
        self._bm25 = Bm25(self._inputs.items)

    def _bootstrap(self, observations: int) -> Bootstrap:
        return Bootstrap(observations, self._settings.seed, self._settings.resamples)

    def _label_task(self) -> Tree | None:
        splits = {name: split for name in HELD_OUT if len(split := self._inputs.splits[name].labelled())}
        if not splits:
            return None
        baselines = fit_baselines(self._inputs)
        return {
            "taught_by": baselines.taught_by,
            "notes": baselines.notes,
            "splits": {
                name: compare_labels(
                    [LabelScores("tuned", "tuned", split.logits), *baselines.scores(split)],
                    split.label_ids,
                    self._bootstrap(len(split)),
                )
                for name, split in splits.items()
            },
        }

    def _labels(self) -> Tree | None:
        judged = self._inputs.judged
        if judged is None:
            return None
        predicted, labels = judged.logits.argmax(axis=1), self._run.labels
        return {
            "split": judged.split,
            "details": label_details(predicted, judged.label_ids, labels),
            "confusion": confusions(predicted, judged.label_ids, labels),
        }

    def _ranking(self) -> Tree | None:
        found: Tree = {}
        for name in HELD_OUT:
            split = self._inputs.splits[name]
            rows = [row for row, grades in enumerate(self._inputs.grades(split.instructions)) if grades]
            if rows:
                asked = split.take(rows)
                ranked = rank_catalogue(self._inputs, asked, tuple(SYSTEMS), self._bm25)
                found[name] = compare_rankings(ranked, self._bootstrap(len(asked)))
                self._test = (asked, ranked)  # the last one with instructions is what is judged
        return {"splits": found} if found else None

    def _calibration(self) -> Tree | None:
        judged, validation = self._inputs.judged, self._inputs.splits["validation"].labelled()
        if judged is None:
            return None
        arguments = (judged.logits, judged.label_ids, self._bootstrap(len(judged)))
        found: Tree = {"split": judged.split, "as_tuned": measure_calibration(*arguments), "rescaled": None}
        if len(validation) and judged.split != validation.split:  # else it would be judged by what it was fitted on
            temperature = best_temperature(validation.logits, validation.label_ids)
            low, high = TEMPERATURES
            found["temperature_at_limit"] = not low * 1.01 < temperature < high / 1.01
            found["rescaled"] = measure_calibration(*arguments, temperature=temperature)
        return found

    def _robustness(self) -> Tree | None:
        judged = self._inputs.judged
        return None if judged is None else measure_robustness(self._inputs, judged, self._bm25)

    def _coverage(self) -> Tree | None:
        if self._test is None:
            return None
        asked, ranked = self._test
        grades = self._inputs.grades(asked.instructions)
        popular = popularity(self._inputs, self._data)
        found = measure_coverage(self._inputs, ranked, grades, self._bootstrap(len(asked)), popular)
        return {"split": asked.split, **found}

    def _learning_curve(self) -> Tree | None:
        judged = self._inputs.judged
        return None if judged is None else learning_curve(self._inputs, judged)


def describe_run(inputs: Inputs) -> Tree:
    """What was measured: the run, how it was tuned, and its dataset."""
    run, manifest, metrics = inputs.run, inputs.run.manifest, inputs.run.manifest.metrics
    config = run.config.model_dump(mode="json")
    init_from = config.get("init_from")
    return {
        "run": {
            "run_id": run.run_id,
            "domain": run.domain,
            "created": manifest.created,
            "fingerprint": manifest.fingerprint,
            "encoder": manifest.encoder.model_dump(),
            **_encoder_origin(run),
            "init_from": init_from and Path(init_from).name,  # a run's id: its folder says nothing elsewhere
            "shots": config["training"].get("shots"),
            "score_weights": manifest.score_weights.model_dump(),
        },
        "dataset": {
            **manifest.dataset.model_dump(),
            "items": len(inputs.items),
            "labels": len(run.labels),
            "instructions": {name: len(split) for name, split in inputs.splits.items()},
            "weak_labels": inputs.weak,
            "notes": metrics.get("notes", []),
        },
        "settings": {**asdict(inputs.settings), "confidence_level": LEVEL},
    }


def _encoder_origin(run: Run) -> Tree:
    """What was done to the encoder; a run derived from another says it in its metrics, its config is its parent's."""
    metrics, config = run.manifest.metrics, run.config
    method = metrics.get("encoder_tuning", {}).get("method", config.encoder_tuning.method)
    if config.distillation is None:
        return {"encoder_method": method}
    made = metrics.get("distillation", {"teacher": Path(config.distillation.teacher).name})
    return {
        "encoder_method": "distilled" if method == "frozen" else method,
        "distillation": {key: made.get(key) for key in ("teacher", "teacher_layers", "layers")},
    }


def plain(value: Any) -> Any:
    """A copy of nested results made of what JSON knows, floats rounded to 6 digits after the point."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return round(value, DIGITS) if isinstance(value, float) else value
