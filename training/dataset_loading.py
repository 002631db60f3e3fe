"""Chooses a domain's source, reads its tables and checks them against each other."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.config import DomainConfig, SourceConfig, TableConfig
from training.dataset import Dataset, Instruction, Interaction
from training.dataset_rows import read_instructions, read_interactions, read_items
from training.dataset_tables import Table, read_table
from training.encoder_source import file_sha256
from training.errors import DatasetError


def choose_source(config: DomainConfig, data: Path) -> SourceConfig:
    """The first source whose catalogue file exists under `data`.

    Raises:
        DatasetError: There is none; the message lists what was looked for.
    """
    for source in config.sources:
        if (data / source.catalogue.file).is_file():
            return source
    looked_for = ", ".join(str(data / source.catalogue.file) for source in config.sources)
    raise DatasetError(f"no dataset for {config.domain}: none of {looked_for} exists; give the directory with --data")


def fingerprint(source: SourceConfig, data: Path) -> tuple[str, dict[str, str]]:
    """The sha256 of what a source names and holds, and the sha256 of each of its files.

    Raises:
        DatasetError: A file that the source names cannot be read.
    """
    files = {}
    for table in _tables(source):
        try:
            files[table.file] = file_sha256(data / table.file)
        except OSError as error:
            looked_for = data / table.file
            raise DatasetError(f"{table.file}: cannot be read ({error.strerror}); looked for {looked_for}") from None
    content = json.dumps([source.model_dump(mode="json"), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest(), files


def load_dataset(config: DomainConfig, data: Path) -> Dataset:
    """Read and check the whole dataset of a domain.

    Raises:
        DatasetError: No source is there, or a file, row or cell breaks the contract of docs/datasets.md.
    """
    source = choose_source(config, data)
    digest, files = fingerprint(source, data)
    items, notes = read_items(_read(source.catalogue, data), source.catalogue)
    by_id = {item.item_id: item for item in items}
    table = _read(source.instructions, data)
    labels = sorted({item.label for item in items})
    instructions, split_notes = complete_splits(
        read_instructions(table, source.instructions, by_id, labels), table.file
    )
    interactions: list[Interaction] = []
    if source.interactions is not None:
        interactions, event_notes = read_interactions(_read(source.interactions, data), source.interactions, by_id)
        notes = [*notes, *event_notes]
    return Dataset(
        source=source.name,
        items=tuple(items),
        instructions=tuple(instructions),
        interactions=tuple(interactions),
        weak_labels=source.instructions.weak_labels,
        has_prior=source.catalogue.prior is not None,
        fingerprint=digest,
        files=files,
        notes=(*notes, *split_notes),
    )


def complete_splits(instructions: Sequence[Instruction], file: str) -> tuple[list[Instruction], list[str]]:
    """Make a validation split of a fifth of the training split where there is none, and say what is missing.

    The choice depends on the texts alone, so it is the same in every run, and equal texts stay together.

    Raises:
        DatasetError: There is no training split.
    """
    texts = {split: {i.text for i in instructions if i.split == split} for split in ("train", "validation", "test")}
    if not texts["train"]:
        raise DatasetError(f"{file}: no instruction is in the split 'train'; mark the rows to learn from with it")
    completed, notes = list(instructions), []
    if not texts["validation"]:
        held_out = set(sorted(texts["train"], key=lambda text: hashlib.sha256(text.encode()).digest())[1::5])
        completed = [
            replace(i, split="validation") if i.text in held_out and i.split == "train" else i for i in completed
        ]
        notes.append(f"no validation split: {len(held_out)} training instructions are held out for it")
    if not texts["test"]:
        notes.append("no test split: test metrics are left out")
    if repeated := len(texts["test"] & (texts["train"] | texts["validation"])):
        notes.append(f"{repeated} test instructions have the very words of a training or validation instruction")
    return completed, notes


def _tables(source: SourceConfig) -> list[TableConfig]:
    tables: list[TableConfig | None] = [source.catalogue, source.instructions, source.interactions]
    return [table for table in tables if table is not None]


def _read(config: TableConfig, data: Path) -> Table:
    return read_table(data / config.file, config.file, config.missing)
