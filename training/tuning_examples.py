"""What the encoder learns from: tokenised instructions and items, and how a batch is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from training.config import EncoderTuningConfig
from training.dataset import Dataset, Split
from training.head import sample_items
from training.model import InstructionModel
from training.relevance import Relevance

CANDIDATES = 16  # relevant items of an instruction, one of which joins it in a batch
PAD_TO = 8  # batch lengths are multiples of it: fewer shapes


@dataclass(frozen=True)
class TuningExample:
    """A text with its label.

    `item` is its catalogue row if it is an item's text. `candidates` are the token ids of relevant items by row, and
    `grades` all graded rows; both are empty for an item.
    """

    token_ids: Sequence[int]
    label_id: int
    weight: float
    item: int | None = None
    candidates: Mapping[int, Sequence[int]] = field(default_factory=dict)
    grades: Mapping[int, float] = field(default_factory=dict)


class TuningExamples(TorchDataset[dict[str, object]]):
    """Examples for the Trainer. `input_ids` is named for its length-grouped sampler, `example` is the rest."""

    def __init__(self, examples: Sequence[TuningExample]) -> None:
        """Keep the examples in order."""
        self._examples = examples

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._examples)

    def __getitem__(self, row: int) -> dict[str, object]:
        """One example."""
        return {"input_ids": self._examples[row].token_ids, "example": self._examples[row]}


def tuning_examples(
    dataset: Dataset, model: InstructionModel, config: EncoderTuningConfig
) -> tuple[TuningExamples, TuningExamples]:
    """The examples to learn from, training instructions and drawn items, and those to validate on.

    A dataset without validation instructions is validated on its training instructions.
    """
    label_id = {label: number for number, label in enumerate(dataset.labels)}
    relevance = Relevance(dataset.items)
    generator = np.random.default_rng(config.seed)

    def of_split(split: Split, *, ranked: bool) -> list[TuningExample]:
        instructions = dataset.split(split)
        ids = _tokenize(model, [instruction.text for instruction in instructions])
        examples = []
        for instruction, tokens in zip(instructions, ids, strict=True):
            grades: Mapping[int, float] = relevance.grades(instruction) if ranked else {}
            drawn = generator.permutation(list(grades))[:CANDIDATES].tolist() if grades else []
            texts = _tokenize(model, [dataset.items[row].text for row in drawn])
            candidates = dict(zip(drawn, texts, strict=True))
            examples.append(TuningExample(tokens, label_id[instruction.label], 1.0, None, candidates, grades))
        return examples

    rows = sample_items(dataset.items, config.items_per_label, config.seed)
    texts = _tokenize(model, [dataset.items[row].text for row in rows])
    items = [
        TuningExample(tokens, label_id[dataset.items[row].label], config.item_weight, row)
        for row, tokens in zip(rows, texts, strict=True)
    ]
    held = of_split("validation", ranked=False) or of_split("train", ranked=False)
    return TuningExamples(of_split("train", ranked=config.ranking_weight > 0) + items), TuningExamples(held)


def _tokenize(model: InstructionModel, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts))] if texts else []


class Collator:
    """Makes a batch of B examples; relevant items of its instructions join it as texts without a label.

    Returns `input_ids` and `attention_mask` int64 [B + J, L], `labels` int64 [B] and `weights` float32 [B], and for the
    ranking loss `asking` int64 [I], the places of the instructions, `answering` int64 [M], the places of all items, and
    `targets` float32 [I, M], the grades of the items for each instruction, each row with the sum 1.
    """

    def __init__(self, model: InstructionModel) -> None:
        """Pad as `model` needs it."""
        self._model = model

    def __call__(self, features: Sequence[Mapping[str, object]]) -> dict[str, Tensor]:
        """Pad, join and grade."""
        examples = [feature["example"] for feature in features]
        batch = [example for example in examples if isinstance(example, TuningExample)]
        tokens = [list(example.token_ids) for example in batch]
        asking = [place for place, example in enumerate(batch) if example.candidates]
        rows = {place: example.item for place, example in enumerate(batch) if example.item is not None}
        for place in asking:
            candidates = batch[place].candidates
            # torch's own generator: the Trainer's checkpoints keep its state.
            chosen = list(candidates)[int(torch.randint(len(candidates), ()))]
            rows[len(tokens)] = chosen
            tokens.append(list(candidates[chosen]))
        input_ids, attention_mask = self._model.pad(tokens)
        missing = -input_ids.shape[1] % min(PAD_TO, self._model.max_length)
        missing = min(missing, self._model.max_length - input_ids.shape[1])
        targets = [[batch[place].grades.get(row, 0.0) for row in rows.values()] for place in asking]
        graded = torch.tensor(targets, dtype=torch.float32).reshape(len(asking), len(rows))
        return {
            "input_ids": torch.nn.functional.pad(input_ids, (0, missing), value=self._model.pad_token_id),
            "attention_mask": torch.nn.functional.pad(attention_mask, (0, missing)),
            "labels": torch.tensor([example.label_id for example in batch]),
            "weights": torch.tensor([example.weight for example in batch]),
            "asking": torch.tensor(asking, dtype=torch.int64),
            "answering": torch.tensor(list(rows), dtype=torch.int64),
            "targets": graded / graded.sum(dim=1, keepdim=True),
        }
