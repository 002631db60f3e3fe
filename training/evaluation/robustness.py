"""What is left of accuracy and ranking when people write the same wish otherwise."""

from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.evaluation.bootstrap import Bootstrap, Floats
from training.evaluation.catalogue_ranking import Bm25, rank_catalogue
from training.evaluation.inputs import Inputs, SplitInputs
from training.evaluation.perturbations import PERTURBATIONS, perturb
from training.metrics import CUT

NDCG = f"ndcg@{CUT}"


def measure_robustness(inputs: Inputs, split: SplitInputs, bm25: Bm25) -> dict[str, Any]:
    """Accuracy, its drop, how often the top label changes, and NDCG@10, for each perturbation.

    A split of more instructions than the settings say is drawn from. The ranking is measured on fewer, so that the
    number of scores stays bounded. `split` holds labelled instructions only.
    """
    settings = inputs.settings
    rows = _drawn(len(split), settings.perturbed_instructions, settings.seed)
    asked = split.take(rows)
    bootstrap = Bootstrap(len(asked), settings.seed, settings.resamples)
    right = asked.logits.argmax(axis=1) == asked.label_ids
    ranked, plain_ndcg = _ranked(inputs, asked, bm25)
    ranking_bootstrap = Bootstrap(len(ranked), settings.seed, settings.resamples) if ranked else None
    table: list[dict[str, Any]] = []
    for perturbation in tqdm(PERTURBATIONS, desc="robustness", unit="perturbation", disable=None, leave=False):
        texts = perturb(asked.texts, perturbation, settings.seed)
        other = _rewritten(inputs, asked, texts, perturbation.title)
        still_right = other.logits.argmax(axis=1) == asked.label_ids
        flips = other.logits.argmax(axis=1) != asked.logits.argmax(axis=1)
        entry: dict[str, Any] = {
            "name": perturbation.name,
            "title": perturbation.title,
            "texts_changed": int(sum(new != old for new, old in zip(texts, asked.texts, strict=True))),
            "accuracy": bootstrap.mean(still_right).estimate(),
            "drop": bootstrap.mean(right.astype(float) - still_right).estimate(),
            "top_label_changes": bootstrap.mean(flips).estimate(),
        }
        if ranking_bootstrap is not None:
            found = _ndcg(inputs, other.take(ranked), bm25)
            entry[NDCG] = ranking_bootstrap.mean(found).estimate()
            entry[f"{NDCG}_drop"] = ranking_bootstrap.mean(plain_ndcg - found).estimate()
        table.append(entry)
    return {
        "split": split.split,
        "instructions": len(asked),
        "instructions_of_split": len(split),
        "instructions_ranked": len(ranked),
        "unchanged": {
            "accuracy": bootstrap.mean(right).estimate(),
            NDCG: ranking_bootstrap.mean(plain_ndcg).estimate() if ranking_bootstrap else None,
        },
        "perturbations": table,
    }


def _drawn(count: int, most: int, seed: int) -> list[int]:
    """Up to `most` of `count` places, in order."""
    if count <= most:
        return list(range(count))
    return sorted(int(row) for row in np.random.default_rng(seed).permutation(count)[:most])


def _ranked(inputs: Inputs, asked: SplitInputs, bm25: Bm25) -> tuple[list[int], Floats]:
    """The places of the instructions that are ranked too, and their NDCG as they were written."""
    most = max(1, inputs.settings.perturbed_scores // len(inputs.items))
    answerable = [place for place, grades in enumerate(inputs.grades(asked.instructions)) if grades]
    rows = [answerable[place] for place in _drawn(len(answerable), most, inputs.settings.seed)]
    return rows, _ndcg(inputs, asked.take(rows), bm25) if rows else np.empty(0)


def _ndcg(inputs: Inputs, split: SplitInputs, bm25: Bm25) -> npt.NDArray[np.float64]:
    return rank_catalogue(inputs, split, ("tuned",), bm25)["tuned"].metrics[NDCG]


def _rewritten(inputs: Inputs, split: SplitInputs, texts: list[str], description: str) -> SplitInputs:
    """The same instructions in other words; the base encoder's vectors stay those of the old ones and are not used."""
    h = inputs.encoder.embed(texts, description)
    return SplitInputs(split.split, split.instructions, split.label_ids, h, split.base_h, inputs.logits(h))
