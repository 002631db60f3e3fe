"""What a derived run keeps of the turn that made it: figures and counts, no one's words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from .evaluation import Comparison
from .old_skill import OldSkill
from .report import Trial


def metrics_of(skill: OldSkill, trial: Trial) -> dict[str, Any]:
    """The parent's metrics that are still true, those of the new head, and how far it has read."""
    from training.metrics import label_accuracy, rounded  # noqa: PLC0415 - loads scikit-learn, which a refusal has no need of

    was = skill.run.manifest.metrics
    # How the encoder came to be stays true of a run that keeps it.
    kept = ("weak_labels", "notes", "encoder_tuning", "distillation")
    metrics: dict[str, Any] = {name: was[name] for name in kept if name in was}
    for split, examples in (("validation", skill.validation), ("test", skill.test)):
        if len(examples):
            logits = trial.head.logits(examples.vectors).astype(np.float32)
            metrics[split] = {"instructions": len(examples), "labels": label_accuracy(logits, examples.label_ids)}
    if trial.encoder is not None:
        metrics["encoder_tuning"] = rounded(asdict(trial.encoder.record))
    judged = trial.judgement
    metrics["continual"] = {"until": trial.until, "old": _figures(judged.old), "new": _figures(judged.new)}
    return metrics


def _figures(comparison: Comparison) -> dict[str, Any]:
    return {name: value for name, value in asdict(comparison).items() if value is not None}


def details_of(trial: Trial) -> dict[str, Any]:
    """What the derived run says of how it came to be: the feedback, and what was done with it."""
    batch = trial.batch
    return {
        "since": trial.since,
        "until": trial.until,
        "base_release": trial.base_release,
        "encoder": "frozen" if trial.encoder is None else trial.encoder.record.method,
        "events": batch.read,
        "digest": batch.digest,
        "learned_from": len(batch.taught),
        "held_out": len(batch.held_out),
        "unused": dict(batch.unused),
        "people_capped": batch.capped,
        "labels": {label: asdict(count) for label, count in batch.labels.items()},
        "replayed": trial.replayed,
        "moved": round(trial.moved, 6),
    }
