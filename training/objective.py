"""What a search minimises or maximises: how well settings do on the validation split."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.dataset import Dataset
from training.embedding_cache import EmbeddingCache
from training.errors import DatasetError, DivergedError
from training.head import (
    HeadExamples,
    Observe,
    equally_weighted,
    joined,
    label_centroids,
    sample_items,
    tune_weighted_head,
)
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
        cache = EmbeddingCache.below(plan.var, encoder, settings.pooling, settings.max_length)
        return cache.embed(model, texts, size)

    people, untaught, validation, centroids = _examples(plan, dataset, embed)
    head = tune_weighted_head(people, untaught, validation, centroids, plan.config.training, start, observe)
    value = head.validation_loss
    if math.isfinite(value) and plan.config.search.metric == "validation_top1_accuracy":
        logits = validation.vectors @ head.weight.T + head.bias
        value = label_accuracy(logits, validation.label_ids)["top1_accuracy"]
    if not math.isfinite(value):
        raise DivergedError("training: the validation loss is not finite; set a lower learning_rate")
    return value


def _examples(
    plan: Plan, dataset: Dataset, embed: Callable[[Sequence[str]], Vectors]
) -> tuple[HeadExamples, HeadExamples, HeadExamples, Vectors]:
    """What the head learns from (people's own instructions, the rest), what it is validated on, and the centroids."""
    settings = plan.config.training
    train, validation = dataset.split("train"), dataset.split("validation")
    augmented = [one.instruction for one in dataset.augmentation]
    most = max(CENTROID_ITEMS, settings.items_per_label)
    drawn = sample_items(dataset.items, most, settings.seed, dataset.held_out)
    instructions, items = [*train, *augmented, *validation], [dataset.items[row] for row in drawn]
    vectors = embed([one.text for one in instructions] + [item.text for item in items])
    label_id = {label: number for number, label in enumerate(dataset.labels)}
    labels = [one.label for one in instructions] + [item.label for item in items]
    ids = np.array([label_id[label] for label in labels], dtype=np.int64)
    taught, learned, asked = len(train), len(train) + len(augmented), len(instructions)
    catalogue = CatalogueSide(vectors[asked:], ids[asked:].tolist(), ())
    # With the same seed, fewer items a label are the first of the more.
    kept = set(sample_items(dataset.items, settings.items_per_label, settings.seed, dataset.held_out))
    places = [place for place, row in enumerate(drawn) if row in kept]
    weights = np.array([one.weight for one in dataset.augmentation], dtype=np.float32)
    return (
        equally_weighted(vectors[:taught], ids[:taught]),
        joined(
            HeadExamples(vectors[taught:learned], ids[taught:learned], weights),
            equally_weighted(catalogue.vectors[places], catalogue.label_ids[places], settings.item_weight),
        ),
        equally_weighted(vectors[learned:asked], ids[learned:asked]),
        label_centroids(catalogue, len(dataset.labels)),
    )
