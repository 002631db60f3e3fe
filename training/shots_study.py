"""Measures few-shot learning and transfer: heads tuned on draws of few instructions, on one or two encoders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from training.augmentation import augment
from training.dataset import Dataset, Instruction, Split
from training.dataset_loading import load_dataset
from training.errors import DatasetError
from training.head import sample_items
from training.plain_classifier import fitted
from training.plan import Plan
from training.score import CatalogueSide, Vectors
from training.shots import draw_shots, limit_shots
from training.train import Embedded, embed_dataset, tune_instruction_head

PLAIN = "plain baseline"
PLAIN_C = 20.0  # inverse of the baseline's regularisation, good for vectors of length 1
Say = Callable[[str], None]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """Top-1 accuracies of one method at one number of shots: one for each draw, on so many `instructions`."""

    method: str
    shots: int
    top1_accuracy: tuple[float, ...]
    instructions: tuple[int, ...]


def study_shots(
    plans: Mapping[str, Plan], shots: Sequence[int], draws: int, split: Split, say: Say
) -> list[Measurement]:
    """Measure a tuned head for each of `plans` (by the name of its method), and the plain baseline on the first.

    All share one dataset and the same draws: `training.seed`, the one after it, and so on. On the validation split only
    those instructions are measured that the largest number of shots leaves out of early stopping.

    Raises:
        DatasetError: Nothing is left to measure on.
    """
    first = next(iter(plans.values()))
    dataset = load_dataset(first.config, first.data)
    seeds = [first.config.training.seed + draw for draw in range(draws)]
    asked = {seed: _left_to_measure(dataset, split, max(shots), seed) for seed in seeds}
    cuts = {
        (count, seed): limit_shots(dataset, _drawing(first, count, seed).config)[0]
        for count in sorted(shots)
        for seed in seeds
    }
    found: dict[tuple[str, int], list[float]] = {}
    for method, plan in plans.items():
        say(f"{method}: encoder {plan.encoder.run or plan.config.encoder.name}")
        # The fewest shots: synthetic ones may speak in the manner of the training instructions that are always there.
        augmentation = augment(plan, next(iter(cuts.values())), say).augmentation
        embedded, _ = embed_dataset(
            plan, plan.encoder, replace(_joined(dataset, cuts.values()), augmentation=augmentation)
        )
        row = {one.instruction_id: number for number, one in enumerate(embedded.dataset.instructions)}
        for (count, seed), cut in tqdm(cuts.items(), desc=method, unit="head", disable=None):
            part = _restricted(embedded, cut, row)
            h = embedded.h[[row[one.instruction_id] for one in asked[seed]]]
            drawing = _drawing(plan, count, seed)
            head = tune_instruction_head(drawing, part, lambda _: None)
            predicted = {method: (h @ head.weight.T + head.bias).argmax(axis=1)}
            if plan is first:
                predicted[PLAIN] = _plain(drawing, part, h)
            for name, ids in predicted.items():
                right = [cut.labels[label] == one.label for label, one in zip(ids.tolist(), asked[seed], strict=True)]
                found.setdefault((name, count), []).append(float(np.mean(right)))
    sizes = tuple(len(own) for own in asked.values())
    results = [Measurement(name, count, tuple(values), sizes) for (name, count), values in found.items()]
    return sorted(results, key=lambda one: [PLAIN, *plans].index(one.method))


def _drawing(plan: Plan, shots: int, seed: int) -> Plan:
    """The plan with another draw."""
    training = plan.config.training.model_copy(update={"shots": shots, "seed": seed})
    return replace(plan, config=plan.config.model_copy(update={"training": training}))


def _left_to_measure(dataset: Dataset, split: Split, most: int, seed: int) -> list[Instruction]:
    instructions = dataset.split(split)
    if split == "validation":
        stopping = {one.instruction_id for one in draw_shots(instructions, most, seed)}
        instructions = [one for one in instructions if one.instruction_id not in stopping]
    if not instructions:
        taken = f"early stopping takes all at {most} shots, try --split test (SPLIT=test)"
        advice = "it has none" if split == "test" else taken
        raise DatasetError(f"{dataset.source}: no instruction of the {split} split is left to measure on; {advice}")
    return instructions


def _joined(dataset: Dataset, cuts: Iterable[Dataset]) -> Dataset:
    """The dataset with the titles that stand in for instructions in some of its cuts."""
    known = {one.instruction_id: one for one in dataset.instructions}
    for cut in cuts:
        known.update({one.instruction_id: one for one in cut.instructions})
    return replace(dataset, instructions=tuple(known.values()))


def _restricted(embedded: Embedded, cut: Dataset, row: Mapping[str, int]) -> Embedded:
    """The vectors of `cut`, with its own label ids: a label that only left-out instructions have is unknown to it."""
    label_id = {label: number for number, label in enumerate(cut.labels)}
    catalogue = CatalogueSide(
        embedded.catalogue.vectors, [label_id[item.label] for item in cut.items], [item.prior for item in cut.items]
    )
    label_ids = np.array([label_id[one.label] for one in cut.instructions], dtype=np.int64)
    h = embedded.h[[row[one.instruction_id] for one in cut.instructions]]
    augmented = [label_id[one.instruction.label] for one in embedded.dataset.augmentation]
    examples = replace(embedded.augmentation, label_ids=np.array(augmented, dtype=np.int64))
    return Embedded(cut, h, label_ids, examples, catalogue, embedded.relevance)


def _plain(plan: Plan, embedded: Embedded, h: Vectors) -> Ids:
    """What scikit-learn's logistic regression makes of `h`, taught with the drawn instructions; with items for none."""
    settings, rows = plan.config.training, embedded.rows("train")
    vectors, ids = embedded.h[rows], embedded.label_ids[rows]
    if not rows:
        cut = embedded.dataset
        drawn = sample_items(cut.items, settings.items_per_label, settings.seed, cut.held_out)
        vectors, ids = embedded.catalogue.vectors[drawn], embedded.catalogue.label_ids[drawn]
    if len(set(ids.tolist())) == 1:
        return np.full(len(h), ids[0])  # scikit-learn refuses to learn a single class
    predicted: Ids = fitted(LogisticRegression(C=PLAIN_C, max_iter=2_000), vectors, ids).predict(h)
    return predicted
