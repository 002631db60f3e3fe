"""How much of the catalogue is ever shown, and whether what is popular is favoured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from training.dataset_loading import choose_source, fingerprint, load_dataset
from training.errors import DatasetError
from training.evaluation.bootstrap import Bootstrap, Floats
from training.evaluation.catalogue_ranking import SYSTEMS, Ranked
from training.evaluation.inputs import Inputs
from training.run import Run


@dataclass(frozen=True)
class Popularity:
    """How popular each item is, float64 [N], and what that was taken from."""

    values: Floats
    source: str


def gini(exposure: npt.ArrayLike) -> float:
    """The Gini coefficient, 0 (all equal) to almost 1 (one has all), of amounts that are not negative.

    `2 sum_i i x_(i) / (n sum_i x_i) - (n + 1) / n` with the amounts in rising order; 0 where all are 0.
    """
    amounts = np.sort(np.asarray(exposure, dtype=np.float64))
    count, total = len(amounts), amounts.sum()
    if total == 0:
        return 0.0
    return float(2 * (np.arange(1, count + 1) @ amounts) / (count * total) - (count + 1) / count)


def percentiles(values: Floats) -> Floats:
    """The percentile of each value, 0 to 100; equal values share one, and the mean over all is 50."""
    ranks: Floats = 100 * (rankdata(values) - 0.5) / len(values)
    return ranks


def popularity(inputs: Inputs, data: Path) -> Popularity | None:
    """The items' priors; without any the number of interactions, if the run's own dataset lies under `data`."""
    priors = inputs.catalogue.priors.astype(np.float64)
    if priors.any():
        return Popularity(priors, "the catalogue's prior")
    counts = _interactions(inputs.run, data)
    if not counts:
        return None
    return Popularity(np.array([float(counts.get(item.item_id, 0)) for item in inputs.items]), "interactions an item")


def _interactions(run: Run, data: Path) -> Mapping[str, int]:
    """How many interactions each item has; a run holds none itself, and another dataset's would mislead."""
    try:
        source = choose_source(run.config, data)
        if source.interactions is None or fingerprint(source, data)[0] != run.manifest.dataset.fingerprint:
            return {}
        dataset = load_dataset(run.config, data)
    except DatasetError:
        return {}
    counts: dict[str, int] = {}
    for event in dataset.interactions:
        counts[event.item_id] = counts.get(event.item_id, 0) + 1
    return counts


def measure_coverage(
    inputs: Inputs,
    ranked: Mapping[str, Ranked],
    grades: Sequence[Mapping[int, float]],
    bootstrap: Bootstrap,
    popular: Popularity | None,
) -> dict[str, Any]:
    """Coverage, Gini of exposure, and the mean popularity percentile of each system's top ten and of what is relevant.

    `possible_items` is the share of the catalogue that the lists could show at most.
    """
    label_ids, labels = inputs.catalogue.label_ids, np.unique(inputs.catalogue.label_ids)
    ranks = None if popular is None else percentiles(popular.values)
    wanted = {int(label) for own in grades for label in label_ids[list(own)]}
    systems: dict[str, Any] = {}
    for name, result in ranked.items():
        exposure = np.bincount(result.top.ravel(), minlength=len(label_ids))
        label_exposure = np.bincount(label_ids, weights=exposure, minlength=len(inputs.run.labels))[labels]
        systems[name] = {
            "title": SYSTEMS[name],
            "items": float((exposure > 0).mean()),
            "labels": float((label_exposure > 0).mean()),
            "gini_items": gini(exposure),
            "gini_labels": gini(label_exposure),
        }
        if ranks is not None:
            systems[name]["popularity_percentile"] = bootstrap.mean(ranks[result.top].mean(axis=1)).estimate()
    shown = next(iter(ranked.values())).top
    found: dict[str, Any] = {
        "instructions": len(grades),
        "catalogue_items": len(label_ids),
        "catalogue_labels": len(labels),
        "possible_items": min(1.0, shown.size / len(label_ids)),
        "labels_asked_for": len(wanted) / len(labels),
        "systems": systems,
        "popularity": None,
    }
    if popular is not None and ranks is not None:
        relevant = [float(ranks[list(own)].mean()) for own in grades]
        found["popularity"] = {"source": popular.source, "relevant_percentile": bootstrap.mean(relevant).estimate()}
    return found
