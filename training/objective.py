"""What a search minimises or maximises: how well settings do on the validation split."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.dataset import Dataset
from training.embedding_cache import EmbeddingCache
from training.errors import DatasetError, DivergedError
from training.head import HeadExamples, Observe, label_centroids, sample_items, tune_head
from training.metrics import label_accuracy
from training.model import InstructionModel
from training.plan import Plan
from training.score import CatalogueSide, Vectors

if TYPE_CHECKING:
    from transformers import TrainerCallback

CENTROID_ITEMS = 20  # items a label, at least, that say what it means before any instruction does


def objective(
    plan: Plan, dataset: Dataset, callbacks: "Sequence[TrainerCallback]" = (), observe: Observe | None = None
) -> float:
    """Tune encoder and head as planned; return the head's `plan.config.search.metric`.

    Only the instructions of the splits train and validation and drawn items are embedded: the test split is not read,
    and neither is the rest of the catalogue. So the head differs a little from that of a run, which takes each label's
    centroid from all of its items. `callbacks` join the encoder's Trainer, `observe` sees the head's epochs.

    Raises:
        DatasetError: There is nothing to validate on.
        DivergedError: The result is not finite.
    """
    if not dataset.split("validation"):
        raise DatasetError(f"source {dataset.source}: no validation instructions; a search needs some to judge by")
    encoder, start, tuned = plan.encoder, None, plan.config.encoder_tuning.method != "frozen"
    if tuned:
        from training.encoder_tuning import tune_encoder  # noqa: PLC0415 - loads peft and the Trainer

        encoder, start, _ = tune_encoder(plan, dataset, lambda line: None, callbacks)
    settings = plan.config.encoder
    model = InstructionModel.from_folder(
        encoder.folder, settings.pooling, settings.max_length, labels=len(dataset.labels)
    )

    def embed(texts: Sequence[str]) -> Vectors:
        size = plan.config.training.embedding_batch_size
        if tuned:  # no other trial has this encoder: nothing to keep
            return model.embed(texts, size)
        folder = plan.var / "cache" / "embeddings"
        return EmbeddingCache(folder, encoder.sha256, settings.pooling, settings.max_length).embed(model, texts, size)

    train, validation, centroids = _examples(plan, dataset, embed)
    head = tune_head(train, validation, centroids, plan.config.training, start, observe)
    value = head.validation_loss
    if math.isfinite(value) and plan.config.search.metric == "validation_top1_accuracy":
        logits = validation.vectors @ head.weight.T + head.bias
        value = label_accuracy(logits, validation.label_ids)["top1_accuracy"]
    if not math.isfinite(value):
        raise DivergedError("training: the validation loss is not finite; set a lower learning_rate")
    return value


def _examples(
    plan: Plan, dataset: Dataset, embed: Callable[[Sequence[str]], Vectors]
) -> tuple[HeadExamples, HeadExamples, Vectors]:
    """The head's examples to learn from and to validate on, and the labels' centroids."""
    settings = plan.config.training
    train, validation = dataset.split("train"), dataset.split("validation")
    drawn = sample_items(dataset.items, max(CENTROID_ITEMS, settings.items_per_label), settings.seed)
    asked = [*train, *(one.instruction for one in dataset.made), *validation]
    learned = len(asked) - len(validation)
    vectors = embed([instruction.text for instruction in asked] + [dataset.items[row].text for row in drawn])
    label_id = {label: number for number, label in enumerate(dataset.labels)}
    labels = [instruction.label for instruction in asked] + [dataset.items[row].label for row in drawn]
    ids = np.array([label_id[label] for label in labels], dtype=np.int64)
    centroids = label_centroids(
        CatalogueSide(vectors[len(asked) :], ids[len(asked) :].tolist(), ()), len(dataset.labels)
    )
    # With the same seed, fewer items a label are the first of the more.
    taught_items = set(sample_items(dataset.items, settings.items_per_label, settings.seed))
    taught = [*range(learned), *(len(asked) + place for place, row in enumerate(drawn) if row in taught_items)]
    weights = np.full(len(taught), settings.item_weight, np.float32)
    weights[: len(train)] = 1.0
    weights[len(train) : learned] = [one.weight for one in dataset.made]
    held = slice(learned, len(asked))
    return (
        HeadExamples(vectors[taught], ids[taught], weights),
        HeadExamples(vectors[held], ids[held], np.ones(len(validation), np.float32)),
        centroids,
    )
