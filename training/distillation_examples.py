"""What a student learns from: texts without labels, each with what the teacher makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from training.dataset import Dataset, wording
from training.errors import ConfigError
from training.model import InstructionModel
from training.score import Vectors
from training.tuning_trainer import LearningModel


def distillation_texts(dataset: Dataset, items: int | Literal["all"], seed: int) -> tuple[list[str], list[str]]:
    """The distinct texts to learn from, and those to validate on.

    Learned from are the training instructions, the instructions without a label, and text and title of `items` drawn
    items, or of all. No text that is held out is among them, wherever else it may stand and however it may be
    capitalised. Validated on are the validation instructions; the training ones where there are none.

    Raises:
        ConfigError: Nothing is left to learn from.
    """
    held = dataset.held_out | {wording(one.text) for one in dataset.instructions if one.split != "train"}
    drawn = np.random.default_rng(seed).permutation(len(dataset.items))[: None if items == "all" else items]
    texts = [one.text for one in dataset.split("train")] + list(dataset.unlabelled)
    for row in sorted(drawn.tolist()):
        texts += [dataset.items[row].text, dataset.items[row].title]
    validation = dict.fromkeys(one.text for one in dataset.split("validation") or dataset.split("train"))
    allowed = [text for text in dict.fromkeys(texts) if wording(text) not in held]
    if not allowed:
        raise ConfigError("distillation.texts is 0, and every training instruction is held out too; set it above 0")
    return allowed, list(validation)


class DistillationExamples(TorchDataset[dict[str, object]]):
    """Token ids of texts, the teacher's vectors of them and the labels that it reads from those.

    `input_ids` is named for the Trainer's length-grouped sampler.
    """

    def __init__(self, token_ids: Sequence[Sequence[int]], vectors: Vectors, labels: Sequence[int]) -> None:
        """Keep all in order; `vectors` is float32 [n, H]."""
        self._token_ids = token_ids
        self._vectors = torch.from_numpy(vectors)
        self._labels = labels

    def __len__(self) -> int:
        """The number of texts."""
        return len(self._token_ids)

    def __getitem__(self, row: int) -> dict[str, object]:
        """One text."""
        return {"input_ids": self._token_ids[row], "vector": self._vectors[row], "label": self._labels[row]}


class DistillationCollator:
    """Makes a batch of B texts.

    Returns `input_ids` and `attention_mask` int64 [B, L], `vectors` float32 [B, H] and `labels` int64 [B]: the
    teacher's, the labels being what validation compares the student's with.
    """

    def __init__(self, model: InstructionModel) -> None:
        """Pad as `model` needs it."""
        self._model = model

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad and join."""
        input_ids, attention_mask = self._model.pad([feature["input_ids"] for feature in features])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "vectors": torch.stack([feature["vector"] for feature in features]),
            "labels": torch.tensor([feature["label"] for feature in features]),
        }


class Student(LearningModel):
    """An instruction model that learns to be near its teacher."""

    def __init__(self, model: InstructionModel, temperature: float, label_weight: float) -> None:
        """Wrap `model`, whose head is the teacher's."""
        super().__init__(model)
        self.temperature = temperature
        self.label_weight = label_weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The `loss` of a collated batch (a scalar), and the student's `logits` [B, K]; `labels` is for the Trainer.

        The loss is the mean of `1 - ⟨h, h'⟩` over the texts, h' the teacher's vector, plus `label_weight` times
        `T² KL(softmax(u' / T) || softmax(u / T))` with the temperature T (Hinton et al. 2015), u and u' being what the
        teacher's head reads from h and h'.
        """
        h, u = self.model(input_ids, attention_mask)
        with torch.no_grad():
            taught = self.model.head(vectors)
        cosine = (h * vectors).sum(dim=-1)
        divergence = nn.functional.kl_div(
            torch.log_softmax(u / self.temperature, dim=-1),
            torch.log_softmax(taught / self.temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        loss = (1 - cosine).mean() + self.label_weight * self.temperature**2 * divergence
        return {"loss": loss, "logits": u}
