"""What a training would do, known before any of it is done: so that a run that exists is found within a second."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import DomainConfig, SourceConfig
from training.dataset_loading import choose_source, fingerprint
from training.distillation_teacher import distillation_inputs, open_teacher
from training.encoder_source import EncoderSource, locate_encoder
from training.errors import RunError
from training.history_config import HistoryConfig
from training.run import Run
from training.run_encoder import encoder_of_run, open_intact_run
from training.run_listing import run_manifests

RECIPE_VERSION = 5  # raise it when the same inputs would give another run


@dataclass(frozen=True)
class Plan:
    """A config with its source chosen and its encoder found. `fingerprint` covers all that the run depends on."""

    config: DomainConfig
    data: Path
    var: Path
    source: SourceConfig
    encoder: EncoderSource
    fingerprint: str
    distillation_teacher: Run | None
    self_training_teacher: Run | None

    @property
    def runs(self) -> Path:
        """The folder of this domain's runs."""
        return self.var / "runs" / self.config.domain

    @property
    def tuning_folder(self) -> Path:
        """Where the encoder's tuning keeps its checkpoints, and its result until the run is written."""
        return self.var / "cache" / "tuning" / self.fingerprint


def make_plan(config: DomainConfig, data: Path, var: Path) -> Plan:
    """Choose the source, find the encoder and fingerprint both.

    With `init_from` the encoder is that run's, and the plan's config says how that run pools.

    Raises:
        DatasetError: No source is there, or a file of it cannot be read.
        EncoderError: The encoder cannot be found, or is not the one the config promises.
        RunError: `init_from` or a teacher names no run or a damaged one.
        RunError: The encoder of `init_from` pools differently.
        ConfigError: The teacher and the config's encoder do not fit.
    """
    source = choose_source(config, data)
    digest, _ = fingerprint(source, data)
    if config.init_from is None:
        encoder = locate_encoder(config.encoder)
    else:
        encoder, settings = encoder_of_run(config.init_from, var / "runs", config.encoder)
        config = config.model_copy(update={"encoder": settings})
    inputs: dict[str, Any] = {
        "recipe": RECIPE_VERSION,
        "domain": config.domain,
        "encoder": {**config.encoder.model_dump(mode="json"), "sha256": encoder.fingerprint},
        # A setting that may be absent, and is, leaves the fingerprint as it was before there was such a setting.
        "training": config.training.model_dump(mode="json", exclude_none=True),
        "dataset": digest,
    }
    if config.init_from is not None:
        inputs["init_from"] = encoder.fingerprint  # what is in the files counts, not the path they were found by
    if config.encoder_tuning.method != "frozen":  # without tuning its other settings change nothing
        inputs["encoder_tuning"] = config.encoder_tuning.fingerprinted()
    self_training_teacher = None
    if config.self_training is not None:
        self_training_teacher = open_intact_run(config.self_training.teacher, var / "runs", "self_training.teacher")
        unset = set() if config.self_training.names else {"names"}  # younger than the other settings, as above
        own = config.self_training.model_dump(mode="json", exclude={"teacher", *unset})
        if config.self_training.names:
            own["words"] = "names and meanings"  # names alone before
        inputs["self_training"] = {**own, "teacher": self_training_teacher.manifest.fingerprint}
    distillation_teacher = open_teacher(config, encoder, var / "runs")
    if config.distillation is not None and distillation_teacher is not None:
        inputs["distillation"] = distillation_inputs(config.distillation, distillation_teacher)
    if config.history != HistoryConfig():  # a config that does not name it keeps its runs
        inputs["history"] = config.history.model_dump(mode="json")
    inputs_digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return Plan(config, data, var, source, encoder, inputs_digest, distillation_teacher, self_training_teacher)


def existing_run(plan: Plan) -> Run | None:
    """The newest whole run that was trained with the plan's fingerprint, None if there is none."""
    for path, manifest in run_manifests(plan.runs):
        if manifest.get("derived_from") is None and manifest.get("fingerprint") == plan.fingerprint:
            with contextlib.suppress(RunError):  # damaged by someone: as good as none, a new run stands beside it
                return Run.open(path)
    return None
