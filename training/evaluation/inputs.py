"""What an evaluation reads: the run, its texts' vectors, and the vectors of the encoder as it was before tuning."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.dataset import Instruction, Item, Split
from training.embedding_cache import EmbeddingCache
from training.encoder_source import locate_encoder
from training.evaluation.bootstrap import RESAMPLES
from training.model import InstructionModel
from training.relevance import Relevance
from training.run import Run
from training.score import CatalogueSide, Vectors

Labels = npt.NDArray[np.int64]
HELD_OUT: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class Settings:
    """How much is drawn. The seed is the run's own, so that a report repeats itself."""

    seed: int
    resamples: int = RESAMPLES
    draws: int = 5
    shots: tuple[int, ...] = (1, 2, 5, 10, 20)
    perturbed_instructions: int = 1_000
    perturbed_scores: int = 10_000_000  # instruction-item pairs that each perturbation is ranked over


class TextEncoder:
    """An encoder with the cache of its vectors."""

    def __init__(self, model: InstructionModel, cache: EmbeddingCache, batch_size: int) -> None:
        """Embed with `model`, and keep vectors in `cache`."""
        self._model = model
        self._cache = cache
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str], description: str) -> Vectors:
        """The vectors of `texts`, float32 [n, H]."""
        with tqdm(total=len(set(texts)), desc=description, unit="text", disable=None, leave=False) as bar:
            return self._cache.embed(self._model, texts, self._batch_size, bar.update)


@dataclass(frozen=True)
class SplitInputs:
    """The instructions of one split: label ids [n] (-1 where the run has no such label) and vectors [n, H]."""

    split: Split
    instructions: Sequence[Instruction]
    label_ids: Labels
    h: Vectors
    base_h: Vectors
    logits: Vectors

    def __len__(self) -> int:
        """The number of instructions."""
        return len(self.instructions)

    @property
    def texts(self) -> list[str]:
        """The instructions' words."""
        return [instruction.text for instruction in self.instructions]

    def take(self, rows: Sequence[int]) -> "SplitInputs":
        """The instructions at `rows`."""
        index = list(rows)
        return SplitInputs(
            self.split,
            [self.instructions[row] for row in index],
            self.label_ids[index],
            self.h[index],
            self.base_h[index],
            self.logits[index],
        )

    def labelled(self) -> "SplitInputs":
        """Those whose label is one of the run's."""
        return self.take([int(row) for row in np.flatnonzero(self.label_ids >= 0)])


@dataclass(frozen=True)
class Inputs:
    """All that is measured. `base_catalogue` and every `base_h` come from the encoder before tuning."""

    run: Run
    settings: Settings
    items: Sequence[Item]
    catalogue: CatalogueSide
    base_catalogue: CatalogueSide
    relevance: Relevance
    encoder: TextEncoder
    base_encoder: TextEncoder
    head: tuple[Vectors, Vectors]
    splits: dict[Split, SplitInputs] = field(default_factory=dict)

    @property
    def is_frozen(self) -> bool:
        """Whether the run's encoder is the base encoder itself."""
        return self.encoder is self.base_encoder

    @property
    def weak(self) -> bool:
        """Whether labels were set by rules."""
        return bool(self.run.manifest.metrics.get("weak_labels", False))

    @property
    def judged(self) -> SplitInputs | None:
        """The labelled instructions of the split that findings are shown on: of test, else of validation, else None."""
        candidates = (self.splits[split].labelled() for split in reversed(HELD_OUT))
        return next((split for split in candidates if len(split)), None)

    def logits(self, h: Vectors) -> Vectors:
        """The head's label scores, float32 [n, K], of vectors [n, H]."""
        weight, bias = self.head
        scores: Vectors = h @ weight.T + bias
        return scores

    def grades(self, instructions: Sequence[Instruction]) -> list[dict[int, float]]:
        """The graded catalogue rows of each instruction; empty where nothing answers it."""
        return [dict(self.relevance.grades(instruction)) for instruction in instructions]


def read_inputs(run: Run, var: Path, settings: Settings) -> Inputs:
    """Read a run and embed what the cache under `var` does not hold.

    Raises:
        RunError: A file of the run is damaged.
        EncoderError: The run's encoder was tuned, and the one it started from cannot be found.
    """
    batch_size = run.config.training.embedding_batch_size
    model, record = run.load_model(), run.manifest.encoder
    encoder = TextEncoder(model, EmbeddingCache.below(var, run.encoder, record.pooling, record.max_length), batch_size)
    items = run.catalogue()
    label_id = {label: number for number, label in enumerate(run.labels)}
    label_ids, priors = [label_id[item.label] for item in items], [item.prior for item in items]
    catalogue = CatalogueSide(run.item_vectors(), label_ids, priors)
    base_encoder, base_catalogue = encoder, catalogue
    base = _base_encoder(run, var, batch_size)
    if base is not None:
        base_encoder = base
        vectors = base.embed([item.text for item in items], "catalogue, base encoder")
        base_catalogue = CatalogueSide(vectors, label_ids, priors)
    head = (model.head.weight.detach().numpy(), model.head.bias.detach().numpy())
    inputs = Inputs(run, settings, items, catalogue, base_catalogue, Relevance(items), encoder, base_encoder, head)
    instructions = run.instructions()
    splits: tuple[Split, ...] = ("train", *HELD_OUT)
    for split in splits:
        own = [instruction for instruction in instructions if instruction.split == split]
        texts = [instruction.text for instruction in own]
        h = encoder.embed(texts, f"instructions, {split}")
        base_h = h if base is None else base_encoder.embed(texts, f"instructions, {split}, base encoder")
        ids = np.array([label_id.get(instruction.label, -1) for instruction in own], dtype=np.int64)
        inputs.splits[split] = SplitInputs(split, own, ids, h, base_h, inputs.logits(h))
    return inputs


def _base_encoder(run: Run, var: Path, batch_size: int) -> TextEncoder | None:
    """The encoder that the run's config names; None where the run's own is the same."""
    named, record = run.config.encoder, run.manifest.encoder
    here = (record.sha256, record.pooling, record.max_length)
    if (named.sha256, named.pooling, named.max_length) == here:
        return None
    source = locate_encoder(named)
    if (source.sha256, named.pooling, named.max_length) == here:
        return None
    model = InstructionModel.from_folder(source.folder, named.pooling, named.max_length, labels=1)
    return TextEncoder(model, EmbeddingCache.below(var, source, named.pooling, named.max_length), batch_size)
