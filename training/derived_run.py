"""Runs made of another run without training afresh: another head, another catalogue, or another encoder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from training.atomic import link_or_copy, new_folder
from training.dataset import Instruction, Item
from training.encoder_source import EncoderSource
from training.errors import RunError
from training.run import (
    HISTORY_VECTORS,
    DatasetRecord,
    DerivedFrom,
    Run,
    copy_encoder,
    head_bytes,
    history_vector_bytes,
    item_vector_bytes,
    json_bytes,
    row_bytes,
    run_name,
)
from training.run_listing import root_of
from training.score import ScoreWeights, Vectors

__all__ = ["derive_run"]

ENCODER = "encoder"  # the folder of it in a run's
NOT_MEASURED = "Not measured for this run, whose head is not that of the run it was derived from: see metrics.json.\n"


def derive_run(  # noqa: PLR0913 - what may change, by name
    parent: Run,
    var: Path,
    *,
    reason: str,
    encoder: EncoderSource | None = None,
    head: tuple[Vectors, Vectors] | None = None,
    score_weights: ScoreWeights | None = None,
    catalogue: Sequence[Item] | None = None,
    item_vectors: Vectors | None = None,
    history_vectors: Vectors | None = None,
    instructions: Sequence[Instruction] | None = None,
    dataset: DatasetRecord | None = None,
    metrics: Mapping[str, Any] | None = None,
    classification_report: str | None = None,
    details: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> Run:
    """Write a run that differs from `parent` in what is given, whole or not at all, and open it.

    Files that stay the same are hard links to the parent's, or copies where the disk cannot link. The labels and the
    config are always the parent's, and so are an encoder's pooling, length and dimensions.

    Args:
        parent: The run that is changed; it stays as it is.
        var: Where all that is produced lies; the run's folder is made in `var/runs/<domain>/`.
        reason: Why there is a new run, in a word or two: `run.json` says so.
        encoder: Another encoder. Needs a head, a catalogue and item vectors, which are of no use with another one.
        head: `weight` [K, H] and `bias` [K].
        score_weights: Of the score's terms.
        catalogue: The items, in row order; their labels are among the parent's. Needs `item_vectors`.
        item_vectors: float32 [N, H], row i of item i of the catalogue.
        history_vectors: float32 [N, D]; needed with a catalogue where histories are read by behaviour.
        instructions: All instructions of the run.
        dataset: What `run.json` says of the dataset, where files of it were read again.
        metrics: What `metrics.json` holds; without them the parent's, which were measured on the parent.
        classification_report: Of this run; without one a new head leaves a line that says that there is none.
        details: Anything that says how the run was made; `run.json` keeps it.
        extra_files: Files that only this kind of run has, by name: a report say.

    Raises:
        RunError: What is given does not fit the parent, the parent is damaged, or the folder cannot be written.
    """
    changed: dict[str, bytes] = {}
    if encoder is not None and (head is None or item_vectors is None):
        raise RunError(f"{parent.path}: another encoder needs another head and other item vectors")
    if head is not None:
        changed["head.safetensors"] = head_bytes(*_checked_head(parent, *head))
        changed["classification_report.txt"] = (classification_report or NOT_MEASURED).encode()
    elif classification_report is not None:
        changed["classification_report.txt"] = classification_report.encode()
    if catalogue is not None or item_vectors is not None or history_vectors is not None:
        changed |= _checked_items(parent, catalogue, item_vectors, history_vectors)
    if instructions is not None:
        _check_labels(parent, {one.label: f"instruction {one.instruction_id!r}" for one in instructions})
        changed["instructions.jsonl"] = row_bytes(instructions)
    if metrics is not None:
        changed["metrics.json"] = json_bytes(dict(metrics))
    weights = score_weights or parent.score_weights
    if not changed and weights == parent.score_weights:
        raise RunError(f"{parent.path}: nothing is given that differs from it; a run is not derived to be the same")
    fingerprint = _fingerprint(parent, reason, weights, changed, encoder)
    created = datetime.now(timezone.utc)
    record = parent.manifest.encoder
    manifest = parent.manifest.model_copy(
        update={
            "run_id": run_name(created, fingerprint),
            "created": created.isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            "dataset": dataset or parent.manifest.dataset,
            "encoder": record if encoder is None else record.model_copy(update={"sha256": encoder.sha256}),
            "score_weights": weights,
            "metrics": parent.manifest.metrics if metrics is None else dict(metrics),
            "derived_from": DerivedFrom(
                run_id=parent.run_id, reason=reason, details=dict(details or {}), root=root_of(parent)
            ),
        }
    )
    changed |= extra_files or {}  # no part of what the run is: they may hold its numbers in words
    changed["run.json"] = json_bytes(manifest.model_dump(mode="json"))
    path = var / "runs" / parent.domain / manifest.run_id
    try:
        with new_folder(path) as folder:
            _fill(folder, parent.path, changed, encoder)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); nothing is left of it, free some space"
        ) from None
    return Run.open(path)


def _fingerprint(
    parent: Run, reason: str, weights: ScoreWeights, changed: Mapping[str, bytes], encoder: EncoderSource | None
) -> str:
    """Of what the run is made of. It is no plan's: a training never takes a derived run for its own."""
    content = {
        "derived_from": parent.manifest.fingerprint,
        "reason": reason,
        "score_weights": weights.model_dump(mode="json"),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(changed.items())},
    }
    if encoder is not None:
        content["encoder"] = encoder.fingerprint
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fill(folder: Path, parent: Path, changed: Mapping[str, bytes], encoder: EncoderSource | None) -> None:
    for path in sorted(parent.rglob("*")):
        name = path.relative_to(parent).as_posix()
        if encoder is not None and name.partition("/")[0] == ENCODER:
            continue
        if path.is_dir():
            (folder / name).mkdir()
        elif name not in changed:
            link_or_copy(path, folder / name)
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    if encoder is not None:
        copy_encoder(encoder.folder, folder / ENCODER)


def _checked_head(parent: Run, weight: Vectors, bias: Vectors) -> tuple[Vectors, Vectors]:
    expected = (len(parent.labels), parent.manifest.encoder.hidden_size)
    if weight.shape != expected or bias.shape != expected[:1]:
        raise RunError(
            f"{parent.path}: a head of {weight.shape} and {bias.shape} does not fit its {expected[0]} labels and "
            f"{expected[1]} dimensions"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise RunError(f"{parent.path}: the new head has a weight that is not finite")
    return weight.astype(np.float32), bias.astype(np.float32)


def _checked_items(
    parent: Run, catalogue: Sequence[Item] | None, vectors: Vectors | None, history_vectors: Vectors | None
) -> dict[str, bytes]:
    if catalogue is None or vectors is None:
        raise RunError(f"{parent.path}: a new catalogue needs new item vectors, and the other way round")
    if not catalogue:
        raise RunError(f"{parent.path}: the new catalogue has no item")
    width = parent.manifest.encoder.hidden_size
    if vectors.shape != (len(catalogue), width) or not np.isfinite(vectors).all():
        raise RunError(f"{parent.path}: {len(catalogue):,} items need finite vectors [{len(catalogue)}, {width}]")
    by_behaviour = parent.config.history.vectors == "behaviour"
    if by_behaviour != (history_vectors is not None) or (
        history_vectors is not None and len(history_vectors) != len(catalogue)
    ):
        wanted = "needs one history vector for each item" if by_behaviour else "reads histories by the item vectors"
        raise RunError(f"{parent.path}: a new catalogue of this run {wanted}")
    if len({item.item_id for item in catalogue}) < len(catalogue):
        raise RunError(f"{parent.path}: the new catalogue has an item id twice")
    _check_labels(parent, {item.label: f"item {item.item_id!r}" for item in catalogue})
    changed = {"catalogue.jsonl": row_bytes(catalogue), "item_vectors.safetensors": item_vector_bytes(vectors)}
    if history_vectors is not None:
        changed[HISTORY_VECTORS] = history_vector_bytes(history_vectors)
    return changed


def _check_labels(parent: Run, examples: Mapping[str, str]) -> None:
    """Refuse a label that the head does not know; `examples` names one row of each label."""
    known = set(parent.labels)
    for label, example in examples.items():
        if label not in known:
            raise RunError(
                f"{parent.path}: {example} has the label {label!r}, which its head does not know; train a new run"
            )
