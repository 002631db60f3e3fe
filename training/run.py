"""The run folder: what training leaves for export. It is complete or not there, and never changes."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from training.atomic import new_folder
from training.config import DomainConfig
from training.config_loading import parse_config, read_yaml
from training.dataset import Dataset, Instruction, Item, Split
from training.encoder_source import BOTTLENECK_SETTINGS, BOTTLENECK_WEIGHTS, EncoderSource
from training.errors import ConfigError, RunError
from training.score import ScoreWeights

if TYPE_CHECKING:
    from training.head import TunedHead
    from training.model import InstructionModel

FILES = (
    "run.json",
    "config.yaml",
    "head.safetensors",
    "labels.json",
    "catalogue.jsonl",
    "item_vectors.safetensors",
    "instructions.jsonl",
    "metrics.json",
    "classification_report.txt",
    "encoder/config.json",
    "encoder/tokenizer.json",
)
HISTORY_VECTORS = "history_vectors.safetensors"  # only where histories are read by behaviour
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetRecord(_Part):
    """The dataset a run was made of: the source's name, its fingerprint and the sha256 of each file.

    Of a derived run the fingerprint is that of the training; `files` has the newer sha256 of what was read since, and
    `people` counts those whose events it was learned from anew.
    """

    source: str
    fingerprint: str
    files: dict[str, str]
    people: int | None = None


class EncoderRecord(_Part):
    """The encoder a run was made with."""

    name: str
    sha256: str
    pooling: Literal["mean", "cls", "last"]
    max_length: int
    hidden_size: int


class DerivedFrom(_Part):
    """The run that a run was made of without training afresh, why, and how (training/derived_run.py).

    `root` is the trained run that all began with; those between may be removed. Older versions wrote none.
    """

    run_id: str
    reason: str
    details: dict[str, Any] = {}
    root: str | None = None


class RunManifest(_Part):
    """The content of `run.json`. `derived_from` is None for a run that was trained."""

    schema_version: Literal[1] = 1
    run_id: str
    domain: str
    created: str
    fingerprint: str
    dataset: DatasetRecord
    encoder: EncoderRecord
    score_weights: ScoreWeights
    metrics: dict[str, Any]
    derived_from: DerivedFrom | None = None


@dataclass(frozen=True)
class RunContent:
    """All that `write_run` puts into a folder. `item_vectors` is float32 [N, H] in the dataset's item order.

    So are `history_vectors` [N, D], where histories are read by behaviour.
    """

    manifest: RunManifest
    config: DomainConfig
    dataset: Dataset
    encoder_folder: Path
    head: "TunedHead"
    item_vectors: npt.NDArray[np.float32]
    classification_report: str
    history_vectors: npt.NDArray[np.float32] | None = None


_catalogues: dict[tuple[int, int, int], tuple[Item, ...]] = {}
"""The catalogue that was read last, by its file: a derived run's is a hard link to its parent's."""


class Run:
    """A finished run, opened for reading."""

    def __init__(self, path: Path, manifest: RunManifest, config: DomainConfig, labels: tuple[str, ...]) -> None:
        """Use `Run.open`."""
        self.path = path
        self.manifest = manifest
        self.config = config
        self.labels = labels

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open the run folder at `path`.

        Raises:
            RunError: It is not a run, or a file of it is missing or damaged.
        """
        path = Path(path)
        for name in FILES:
            if not (path / name).is_file():
                raise RunError(f"{path}: not a complete run, {name} is missing; train again")
        try:
            manifest = RunManifest.model_validate_json((path / "run.json").read_text(encoding="utf-8"))
            config = parse_config(read_yaml((path / "config.yaml").read_text(encoding="utf-8")), where="config.yaml")
            labels = tuple(json.loads((path / "labels.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, ValidationError, yaml.YAMLError, ConfigError) as error:
            raise RunError(f"{path}: damaged run ({' '.join(str(error).split())[:200]}); train again") from None
        if config.history.vectors == "behaviour" and not (path / HISTORY_VECTORS).is_file():
            raise RunError(f"{path}: not a complete run, {HISTORY_VECTORS} is missing; train again")
        return cls(path, manifest, config, labels)

    @property
    def run_id(self) -> str:
        """The run's name, also that of its folder: when it was made, and the begin of its fingerprint."""
        return self.manifest.run_id

    @property
    def domain(self) -> str:
        """The domain, as in the config."""
        return self.manifest.domain

    @property
    def encoder(self) -> EncoderSource:
        """The tuned encoder, as something to embed with or to start from."""
        return EncoderSource(self.path / "encoder", self.manifest.encoder.sha256, f"{self.domain}/{self.run_id}")

    @property
    def score_weights(self) -> ScoreWeights:
        """The fitted weights of the score."""
        return self.manifest.score_weights

    def catalogue(self) -> list[Item]:
        """The items in row order."""
        return list(self._items)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        """Kept, because an export asks for them several times, and a large catalogue takes a second to read."""
        try:
            status = (self.path / "catalogue.jsonl").stat()
        except OSError as error:
            raise RunError(f"{self.path}: catalogue.jsonl cannot be read ({error.strerror}); train again") from None
        identity = status.st_dev, status.st_ino, status.st_mtime_ns
        if identity not in _catalogues:
            _catalogues.clear()
            _catalogues[identity] = tuple(Item(**row) for row in self._rows("catalogue.jsonl"))
        return _catalogues[identity]

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """The item vectors, float32 [N, H], each of length 1; row i belongs to line i of the catalogue."""
        return self._tensors("item_vectors.safetensors", "item_vectors")["item_vectors"]

    def history_vectors(self) -> npt.NDArray[np.float32] | None:
        """What the history term multiplies, float32 [N, D]; None where that is the item vectors."""
        if not (self.path / HISTORY_VECTORS).is_file():
            return None
        return self._tensors(HISTORY_VECTORS, "history_vectors")["history_vectors"]

    def instructions(self, split: Split | None = None) -> list[Instruction]:
        """The instructions in file order, of one split or of all."""
        rows = [Instruction(**row) for row in self._rows("instructions.jsonl")]
        return [row for row in rows if split in (None, row.split)]

    def load_model(self) -> "InstructionModel":
        """The encoder with the tuned head, in eval mode, float32.

        Raises:
            RunError: The head does not fit the encoder or the labels.
            EncoderError: The encoder cannot be loaded.
        """
        import torch  # noqa: PLC0415 - reading a run's facts should not load torch

        from training.model import InstructionModel  # noqa: PLC0415

        record = self.manifest.encoder
        model = InstructionModel.from_folder(self.path / "encoder", record.pooling, record.max_length, len(self.labels))
        weight, bias = self.head()
        if weight.shape[1] != model.hidden_size:
            raise RunError(f"{self.path}: the head is {weight.shape}, the encoder {model.hidden_size}; train again")
        model.head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        return model

    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The instruction head: `weight`, float32 [K, H], and `bias`, float32 [K].

        Raises:
            RunError: It is damaged, or does not fit the labels.
        """
        head = self._tensors("head.safetensors", "weight", "bias")
        shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
        labels = len(self.labels)
        expected = {"weight": (labels, self.manifest.encoder.hidden_size), "bias": (labels,)}
        if shapes != expected:
            raise RunError(f"{self.path}: the head has the shapes {shapes}, expected {expected}; train again")
        return head["weight"], head["bias"]

    def _rows(self, name: str) -> Iterable[dict[str, Any]]:
        try:
            lines = (self.path / name).read_bytes().splitlines()
            # As one list, which takes half the time of parsing each line on its own.
            rows: list[dict[str, Any]] = json.loads(b"[" + b",".join(lines) + b"]")
            return rows
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: {name} is damaged ({error}); train again") from None

    def _tensors(self, name: str, *expected: str) -> dict[str, npt.NDArray[np.float32]]:
        try:
            tensors: dict[str, npt.NDArray[np.float32]] = load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path}: {name} is damaged ({error}); train again") from None
        if set(tensors) != set(expected):
            raise RunError(f"{self.path}: {name} holds {sorted(tensors)}, expected {sorted(expected)}; train again")
        return tensors


def write_run(runs: Path, content: RunContent) -> Run:
    """Write a run folder under `runs`, whole or not at all, and open it.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    path = runs / content.manifest.run_id
    try:
        with new_folder(path) as folder:
            _fill(folder, content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); nothing is left of it, free some space"
        ) from None
    return Run.open(path)


def _fill(folder: Path, content: RunContent) -> None:
    copy_encoder(content.encoder_folder, folder / "encoder")
    (folder / "head.safetensors").write_bytes(head_bytes(content.head.weight, content.head.bias))
    (folder / "item_vectors.safetensors").write_bytes(item_vector_bytes(content.item_vectors))
    if content.history_vectors is not None:
        (folder / HISTORY_VECTORS).write_bytes(history_vector_bytes(content.history_vectors))
    (folder / "labels.json").write_bytes(json_bytes(list(content.dataset.labels)))
    (folder / "metrics.json").write_bytes(json_bytes(content.manifest.metrics))
    (folder / "catalogue.jsonl").write_bytes(row_bytes(content.dataset.items))
    (folder / "instructions.jsonl").write_bytes(row_bytes(content.dataset.instructions))
    # How a tuning was watched, or what else was tried, is no part of its result.
    settings = content.config.model_dump(mode="json", exclude={"tracking", "search"})
    config = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "classification_report.txt").write_text(content.classification_report, encoding="utf-8")
    (folder / "run.json").write_bytes(json_bytes(content.manifest.model_dump(mode="json")))


def copy_encoder(source: Path, target: Path) -> None:
    """Copy weights, configuration and tokenizer: a frozen encoder keeps its very bytes, and so its sha256."""
    target.mkdir()
    copy_encoder_files(source, target)


def copy_encoder_files(source: Path, target: Path) -> None:
    """Copy the files of an encoder into the folder `target`, which is there."""
    adapters = (BOTTLENECK_WEIGHTS, BOTTLENECK_SETTINGS)
    copy_files(source, target, ("config.json", "model*.safetensors*", *adapters, *TOKENIZER_FILES))


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of `source` that match one of `patterns` into the folder `target`."""
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def run_name(created: datetime, fingerprint: str) -> str:
    """The id of a run: names sort by time, to the millisecond."""
    return f"{created:%Y%m%dT%H%M%S%f}"[:-3] + f"Z-{fingerprint[:8]}"


# Tensors as bytes, since save_file() makes files that only their owner can read; a run is read by other users too.
def head_bytes(weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> bytes:
    """The content of `head.safetensors`."""
    return save({"weight": np.ascontiguousarray(weight), "bias": np.ascontiguousarray(bias)})


def item_vector_bytes(vectors: npt.NDArray[np.float32]) -> bytes:
    """The content of `item_vectors.safetensors`."""
    return save({"item_vectors": np.ascontiguousarray(vectors, dtype=np.float32)})


def history_vector_bytes(vectors: npt.NDArray[np.float32]) -> bytes:
    """The content of `history_vectors.safetensors`."""
    return save({"history_vectors": np.ascontiguousarray(vectors, dtype=np.float32)})


def json_bytes(value: object) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def row_bytes(rows: Iterable[Item | Instruction]) -> bytes:
    """The content of a file with a JSON object a line."""
    # Flat but for mappings of plain values, which asdict() would copy one by one at eight times the cost.
    lines = (json.dumps(vars(row), ensure_ascii=False, allow_nan=False, default=dict) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()
