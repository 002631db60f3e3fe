"""Self-training: a teacher labels the instructions that nobody labelled, where it is sure and they fit the items."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.config import SelfTrainingConfig
from training.dataset import Dataset, Instruction, MadeInstruction
from training.embedding_cache import EmbeddingCache
from training.errors import RunError
from training.run import Run
from training.score import Vectors, log_softmax

CHUNK = 256  # texts compared with the whole catalogue at once


def pseudo_label(
    dataset: Dataset, teacher: Run, config: SelfTrainingConfig, cache: EmbeddingCache, batch_size: int
) -> list[MadeInstruction]:
    """The unlabelled instructions that `teacher` labels, in the order of `dataset.unlabelled`.

    A teacher of some labels knows none but those, and is as sure of a text that asks for no item of this catalogue at
    all. So of the texts only the share `config.nearest` that lies nearest to some item is used, and of those only what
    the teacher gives a probability of at least `config.confidence`. Of a label that is found more than
    `config.per_label` times as many are drawn (Lee 2013; the thresholds are this project's).

    Raises:
        RunError: The teacher has other labels than the dataset.
    """
    if set(teacher.labels) - set(dataset.labels):
        raise RunError(f"self_training.teacher: run {teacher.run_id} has other labels; name a run of this dataset")
    if not dataset.unlabelled:
        raise RunError("self_training: the source has no unlabelled instructions; name them under `unlabelled`")
    model = teacher.load_model()
    h = cache.embed(model, dataset.unlabelled, batch_size)
    near = nearest_similarity(h, teacher.item_vectors())
    logs = log_softmax(h @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy())
    label_ids = logs.argmax(axis=1)
    sure = (near >= np.quantile(near, 1 - config.nearest)) & (np.exp(logs.max(axis=1)) >= config.confidence)
    generator = np.random.default_rng(config.seed)
    chosen: list[int] = []
    for label_id in np.unique(label_ids[sure]):
        found: npt.NDArray[np.int64] = np.flatnonzero(sure & (label_ids == label_id))
        chosen += generator.permutation(found)[: config.per_label].tolist()
    return [
        MadeInstruction(
            Instruction(f"pseudo-{row}", dataset.unlabelled[row], teacher.labels[label_ids[row]], {}, {}, "train"),
            config.weight,
            ranked=False,
        )
        for row in sorted(chosen)
    ]


def nearest_similarity(h: Vectors, item_vectors: Vectors) -> Vectors:
    """The greatest cosine of each row of `h` [n, H] with an item [N, H], float32 [n]."""
    parts: Sequence[Vectors] = [
        (h[start : start + CHUNK] @ item_vectors.T).max(axis=1) for start in range(0, len(h), CHUNK)
    ]
    return np.concatenate(parts)
