"""Self-training: the instructions that nobody labelled get labels where they fit the items.

A teacher finds the labels, where it is sure; or the texts name or mean them, where it does not find that absurd.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from training.config import SelfTrainingConfig
from training.dataset import AugmentedInstruction, Dataset, Instruction
from training.embedding_cache import EmbeddingCache
from training.errors import RunError
from training.label_names import LabelNames
from training.run import Run
from training.score import Vectors, log_softmax
from training.word_meanings import WordMeanings

CHUNK = 256  # texts compared with the whole catalogue at once
NEIGHBOURS = 50
TEMPERATURE = 0.03
EXCHANGED = 0.1  # the weight of a text whose name was exchanged, beside one as it was said
SELDOM = 0.25  # a text that names nothing is nearer to an item than this share of those that do
BEARABLE = 0.03  # the least share of a label that a text names or means: a pendant lamp is no Pendant


def pseudo_label(
    dataset: Dataset, teacher: Run, config: SelfTrainingConfig, cache: EmbeddingCache, batch_size: int
) -> list[AugmentedInstruction]:
    """The unlabelled instructions that `teacher` labels, in the order of `dataset.unlabelled`.

    Two views of the teacher are averaged: its head's probabilities, and the votes of the items nearest to the text.
    They err in different places, so that their mean is surer where it is sure (measured in docs/training.md).
    A teacher knows no labels but its own, and is as sure of a text that asks for nothing of this catalogue at all. So
    of the texts only the share `config.nearest` that lies nearest to some item is used, and of those only what gets at
    least `config.confidence`. Of a label found more than `config.per_label` times as many are drawn (Lee 2013; the
    votes and thresholds are this project's).

    With `config.names`, a text that names exactly one label has that one, and one that names none has the label that
    its words mean, each if the teacher's share of it is `BEARABLE`; other texts are left out. What a person names
    outright is a better teacher than a head that knows titles alone. Labels that few texts name get texts of others,
    with their name instead.

    Raises:
        RunError: The teacher has other labels than the dataset.
    """
    if set(teacher.labels) - set(dataset.labels):
        raise RunError(f"self_training.teacher: run {teacher.run_id} has other labels; name a run of this dataset")
    if not dataset.unlabelled:
        raise RunError("self_training: the source has no unlabelled instructions; name them under `unlabelled`")
    model = teacher.load_model()
    h = cache.embed(model, dataset.unlabelled, batch_size)
    logs = log_softmax(h @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy())
    near, votes = votes_of_items(h, teacher, logs.shape[1])
    shares = (np.exp(logs) + votes) / 2
    names = LabelNames.learn(dataset.items) if config.names else None
    label_ids, least = shares.argmax(axis=1), np.full(len(h), np.quantile(near, 1 - config.nearest))
    if names is not None:
        meanings = WordMeanings.learn(
            dataset.unlabelled, dataset.items, names, partial(cache.embed, model, batch_size=batch_size)
        )
        named, meant = _labels_in_words(names, meanings, dataset, teacher)
        label_ids = np.where(named >= 0, named, meant)
        if (named >= 0).any():
            # Where a text is of nothing in the catalogue, words mean something all the same.
            least[named < 0] = max(least[0], np.quantile(near[named >= 0], SELDOM))
    share = shares[np.arange(len(h)), label_ids]
    sure = (near >= least) & (label_ids >= 0)
    sure &= share >= (BEARABLE if config.names else config.confidence)
    generator = np.random.default_rng(config.seed)
    chosen: list[int] = []
    for label_id in np.unique(label_ids[sure]):
        found: npt.NDArray[np.int64] = np.flatnonzero(sure & (label_ids == label_id))
        chosen += generator.permutation(found)[: config.per_label].tolist()
    labelled = [
        _instruction(f"pseudo-{row}", dataset.unlabelled[row], teacher.labels[label_ids[row]], config.weight)
        for row in sorted(chosen)
    ]
    return labelled if names is None else [*labelled, *_exchanged(labelled, names, dataset.labels, config)]


def _instruction(name: str, text: str, label: str, weight: float) -> AugmentedInstruction:
    return AugmentedInstruction(Instruction(name, text, label, {}, {}, "train"), weight, ranked=False)


def _exchanged(
    labelled: Sequence[AugmentedInstruction], names: LabelNames, labels: Sequence[str], config: SelfTrainingConfig
) -> list[AugmentedInstruction]:
    """Texts of `labelled` with another label's name instead, for labels that fewer than `per_label` of them have.

    So the rest of a text ("with a rubber sole") does not stand for those labels that people happened to name with it.
    """
    generator = np.random.default_rng(config.seed)
    counts = Counter(one.instruction.label for one in labelled)
    instructions = [one.instruction for one in labelled]
    with_names = [(one.text, one.label) for one in instructions if names.named(one.text)]
    made: list[AugmentedInstruction] = []
    for label in labels:
        own_names = names.names_of(label)
        others = [text for text, named in with_names if named != label] if own_names else []
        wanted = max(0, config.per_label - counts[label])
        for row in generator.permutation(len(others))[:wanted]:
            text = names.exchanged(others[row], own_names[int(generator.integers(len(own_names)))])
            if text is not None:
                made.append(_instruction(f"exchanged-{len(made)}", text, label, EXCHANGED * config.weight))
    return made


def _labels_in_words(
    names: LabelNames, meanings: WordMeanings, dataset: Dataset, teacher: Run
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The label that each unlabelled instruction names, and the one that it means where it names none, int64 [n] each.

    -1 where there is none, or where it names several.
    """
    number = {label: place for place, label in enumerate(teacher.labels)}
    named, meant = np.full((2, len(dataset.unlabelled)), -1, dtype=np.int64)
    for row, text in enumerate(dataset.unlabelled):
        labels = names.named(text)
        if len(labels) == 1:
            named[row] = number.get(labels[0], -1)
        elif not labels and (label := meanings.meant(text)) is not None:
            meant[row] = number.get(label, -1)
    return named, meant


def votes_of_items(h: Vectors, teacher: Run, labels: int) -> tuple[Vectors, Vectors]:
    """How near each text of `h` [n, H] is to an item, float32 [n], and its nearest items' votes, float32 [n, K].

    Each of the `NEIGHBOURS` nearest items votes for its label by `exp(cosine / TEMPERATURE)`; a text's votes sum to 1.
    """
    vectors = teacher.item_vectors()
    number = {label: place for place, label in enumerate(teacher.labels)}
    label_ids = np.array([number[item.label] for item in teacher.catalogue()])
    count = min(NEIGHBOURS, len(vectors))
    near, votes = np.empty(len(h), np.float32), np.zeros((len(h), labels), np.float32)
    for start in range(0, len(h), CHUNK):
        cosines = h[start : start + CHUNK] @ vectors.T
        rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        best = np.take_along_axis(cosines, rows, axis=1)
        near[start : start + CHUNK] = best.max(axis=1)
        weights = np.exp((best - best.max(axis=1, keepdims=True)) / TEMPERATURE)
        places = np.arange(start, start + len(cosines))[:, None]
        np.add.at(votes, (places, label_ids[rows]), weights / weights.sum(axis=1, keepdims=True))
    return near, votes
