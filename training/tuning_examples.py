"""What the encoder learns from: tokenised instructions and items, and how a batch is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from training.config import EncoderTuningConfig
from training.dataset import Dataset, Instruction, Split, says_one_of
from training.head import sample_items
from training.model import InstructionModel
from training.relevance import Relevance

CANDIDATES = 16  # relevant items of an instruction, one of which joins it in a batch
RIVALS = 16  # items of its label that do not answer it, of which some join it
PAD_TO = 8  # batch lengths are multiples of it: fewer shapes


@dataclass(frozen=True)
class TuningExample:
    """A text with its label.

    `item` is its catalogue row if it is an item's text. `candidates` are the token ids of relevant items by row,
    `rivals` those of items with its label that are not relevant, `grades` all graded rows; all are empty for an item.
    """

    token_ids: Sequence[int]
    label_id: int
    weight: float
    item: int | None = None
    candidates: Mapping[int, Sequence[int]] = field(default_factory=dict)
    rivals: Mapping[int, Sequence[int]] = field(default_factory=dict)
    grades: Mapping[int, float] = field(default_factory=dict)


Examples = list[TuningExample]


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
    ranker = _Ranker(dataset, model, config) if config.ranking_weight > 0 else None

    def examples(instructions: Sequence[Instruction], weights: Sequence[float], ranked: Sequence[bool]) -> Examples:
        ids = _tokenize(model, [instruction.text for instruction in instructions])
        return [
            (ranker.example if ranker is not None and asks else _plain)(
                one, TuningExample(tokens, label_id[one.label], weight)
            )
            for one, tokens, weight, asks in zip(instructions, ids, weights, ranked, strict=True)
        ]

    def of_split(split: Split, *, ranked: bool) -> Examples:
        instructions = dataset.split(split)
        return examples(instructions, [1.0] * len(instructions), [ranked] * len(instructions))

    rows = sample_items(dataset.items, config.items_per_label, config.seed, dataset.held_out)
    texts = _tokenize(model, [dataset.items[row].text for row in rows])
    items = [
        TuningExample(tokens, label_id[dataset.items[row].label], config.item_weight, row)
        for row, tokens in zip(rows, texts, strict=True)
    ]
    others = dataset.augmentation
    learned = examples(
        [one.instruction for one in others], [one.weight for one in others], [one.ranked for one in others]
    )
    held = of_split("validation", ranked=False) or of_split("train", ranked=False)
    return TuningExamples([*of_split("train", ranked=True), *learned, *items]), TuningExamples(held)


def _plain(instruction: Instruction, example: TuningExample) -> TuningExample:
    return example


class _Ranker:
    """Adds to an example what it needs for the ranking loss."""

    def __init__(self, dataset: Dataset, model: InstructionModel, config: EncoderTuningConfig) -> None:
        self._dataset = dataset
        self._model = model
        self._relevance = Relevance(dataset.items)
        self._said = {row for row, item in enumerate(dataset.items) if says_one_of(item, dataset.held_out)}
        self._generator = np.random.default_rng(config.seed)
        self._rivals = RIVALS if config.rivals else 0
        self._tokens: dict[int, Sequence[int]] = {}

    def example(self, instruction: Instruction, example: TuningExample) -> TuningExample:
        """`example` with its graded items; itself where no item answers."""
        grades = self._relevance.grades(instruction)
        if not grades:
            return example
        others = [row for row in self._relevance.rows_of_label(instruction.label) if row not in grades]
        candidates, rivals = self._draw(list(grades), CANDIDATES), self._draw(others, self._rivals)
        return replace(example, candidates=candidates, rivals=rivals, grades=grades)

    def _draw(self, rows: Sequence[int], count: int) -> dict[int, Sequence[int]]:
        rows = [row for row in rows if row not in self._said]
        drawn = self._generator.choice(rows, size=min(count, len(rows)), replace=False).tolist() if rows else []
        unknown = [row for row in drawn if row not in self._tokens]
        texts = _tokenize(self._model, [self._dataset.items[row].text for row in unknown])
        self._tokens.update(zip(unknown, texts, strict=True))
        return {row: self._tokens[row] for row in drawn}


def _tokenize(model: InstructionModel, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts))] if texts else []


class Collator:
    """Makes a batch of B examples; for its instructions relevant items and rivals join it, as texts without a label.

    Returns `input_ids` and `attention_mask` int64 [B + J, L], `labels` int64 [B] and `weights` float32 [B], and for the
    ranking loss `asking` int64 [I], the places of the instructions, `answering` int64 [M], the places of all items, and
    `targets` float32 [I, M], the grades of the items for each instruction, each row with the sum 1.
    """

    def __init__(self, model: InstructionModel, rivals: int) -> None:
        """Pad as `model` needs it; `rivals` items that do not answer join each instruction that is ranked."""
        self._model = model
        self._rivals = rivals

    def __call__(self, features: Sequence[Mapping[str, object]]) -> dict[str, Tensor]:
        """Pad, join and grade."""
        examples = [feature["example"] for feature in features]
        batch = [example for example in examples if isinstance(example, TuningExample)]
        tokens = [list(example.token_ids) for example in batch]
        asking = [place for place, example in enumerate(batch) if example.candidates]
        rows = {place: example.item for place, example in enumerate(batch) if example.item is not None}
        for place in asking:
            for pool, count in ((batch[place].candidates, 1), (batch[place].rivals, self._rivals)):
                # torch's own generator: the Trainer's checkpoints keep its state.
                for chosen in torch.randperm(len(pool))[:count].tolist():
                    row = list(pool)[chosen]
                    rows[len(tokens)] = row
                    tokens.append(list(pool[row]))
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
