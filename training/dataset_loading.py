"""Chooses a domain's source, reads its tables and checks them against each other."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from training.column_config import TableConfig
from training.config import DomainConfig, SourceConfig
from training.dataset import Dataset, Instruction, Interaction, Item, wording
from training.dataset_rows import read_instructions, read_interactions, read_items, read_translation
from training.dataset_splits import complete_splits, note_unanswered
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
    raise DatasetError(
        f"no dataset for {config.domain}: none of {looked_for} exists; give the directory (--data, DATA=)"
    )


def fingerprint(source: SourceConfig, data: Path) -> tuple[str, dict[str, str]]:
    """The sha256 of what a source names and holds, and the sha256 of each of its files.

    Raises:
        DatasetError: A file that the source names cannot be read.
    """
    files = file_digests(_tables(source), data)
    content = json.dumps([source.model_dump(mode="json"), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest(), files


def file_digests(tables: Iterable[TableConfig], data: Path) -> dict[str, str]:
    """The sha256 of the file of each table.

    Raises:
        DatasetError: A file cannot be read.
    """
    files = {}
    for table in tables:
        try:
            files[table.file] = file_sha256(data / table.file)
        except OSError as error:
            looked_for = data / table.file
            raise DatasetError(f"{table.file}: cannot be read ({error.strerror}); looked for {looked_for}") from None
    return files


def event_tables(source: SourceConfig) -> list[TableConfig]:
    """What a source's events are read from: their table, and the one that translates their items' ids."""
    config = source.interactions
    if config is None:
        return []
    return [config] if config.item_id.via is None else [config, config.item_id.via]


def load_dataset(config: DomainConfig, data: Path) -> Dataset:
    """Read and check the whole dataset of a domain.

    Raises:
        DatasetError: No source is there, or a file, row or cell breaks the contract of docs/datasets.md.
    """
    source = choose_source(config, data)
    digest, files = fingerprint(source, data)
    items, notes = read_items(_read(source.catalogue, data), source.catalogue)
    by_id = {item.item_id: item for item in items}
    instructions, instruction_notes = _read_all_instructions(source, data, by_id)
    interactions, event_notes = _read_all_interactions(source, data, by_id)
    held_out = frozenset(wording(one.text) for one in instructions if one.split != "train")
    unlabelled, unlabelled_notes = _read_unlabelled(source, data, held_out)
    return Dataset(
        source=source.name,
        items=tuple(items),
        instructions=tuple(instructions),
        interactions=tuple(interactions),
        weak_labels=any(table.weak_labels for table in source.instructions),
        has_prior=source.catalogue.prior is not None,
        fingerprint=digest,
        files=files,
        notes=(*notes, *event_notes, *instruction_notes, *unlabelled_notes, *_note_items_said(items, instructions)),
        unlabelled=tuple(unlabelled),
        held_out=held_out,
    )


def load_items(source: SourceConfig, data: Path) -> list[Item]:
    """Read and check a source's catalogue alone.

    Raises:
        DatasetError: The file, a row or a cell of it breaks the contract.
    """
    return read_items(_read(source.catalogue, data), source.catalogue)[0]


def load_interactions(source: SourceConfig, data: Path, items: Mapping[str, Item]) -> list[Interaction]:
    """Read a source's events of `items`; those of other items are left out, whatever the config says of them.

    Raises:
        DatasetError: The file, a row or a cell of it breaks the contract.
    """
    if source.interactions is None:
        return []
    known = source.interactions.model_copy(update={"unknown_items": "ignore"})
    return _read_all_interactions(source.model_copy(update={"interactions": known}), data, items)[0]


def _read_all_instructions(
    source: SourceConfig, data: Path, items: Mapping[str, Item]
) -> tuple[list[Instruction], list[str]]:
    labels = sorted({item.label for item in items.values()})
    instructions: list[Instruction] = []
    groups: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    for number, config in enumerate(source.instructions, start=1):
        # Row numbers of several tables would collide; those of one stay as they are.
        prefix = f"{number}-" if len(source.instructions) > 1 else ""
        table = _read(config, data)
        own, own_groups, own_notes = read_instructions(table, config, items, labels, prefix)
        repeated = next((i.instruction_id for i in own if i.instruction_id in seen), None)
        if repeated is not None:
            where = f"{config.file}: instruction id {repeated!r}"
            raise DatasetError(f"{where} is in an earlier table of instructions too; make the ids unique")
        seen.update(i.instruction_id for i in own)
        instructions += own
        groups += own_groups
        notes += own_notes
    files = ", ".join(dict.fromkeys(config.file for config in source.instructions))
    instructions, split_notes = complete_splits(instructions, groups, files)
    return instructions, [*notes, *split_notes, *note_unanswered(instructions, labels, files)]


def _read_all_interactions(
    source: SourceConfig, data: Path, items: Mapping[str, Item]
) -> tuple[list[Interaction], list[str]]:
    config = source.interactions
    if config is None:
        return [], []
    via = config.item_id.via
    translation = None if via is None else read_translation(_read(via, data), via)
    return read_interactions(_read(config, data), config, items, translation)


def _read_unlabelled(source: SourceConfig, data: Path, held_out: frozenset[str]) -> tuple[list[str], list[str]]:
    """The distinct texts without labels; what is held out with a label must not be seen without one either."""
    config = source.unlabelled
    if config is None:
        return [], []
    table = _read(config, data)
    texts = table.column(config.text)
    table.reject(texts == "", config.text, "the instruction is empty", "write the instruction or remove the row")
    distinct = dict.fromkeys(texts.tolist())
    kept = [text for text in distinct if wording(text) not in held_out]
    left_out = len(distinct) - len(kept)
    return kept, [f"{config.file}: {left_out} texts that are held out are left out"] if left_out else []


def _note_items_said(items: Sequence[Item], instructions: Sequence[Instruction]) -> list[str]:
    known = {wording(text) for item in items for text in (item.text, item.title)}
    said = sum(one.split == "test" and wording(one.text) in known for one in instructions)
    return [f"{said} test instructions are the very text or title of an item"] if said else []


def _tables(source: SourceConfig) -> list[TableConfig]:
    tables: list[TableConfig | None] = [
        source.catalogue,
        *source.instructions,
        source.unlabelled,
        *event_tables(source),
    ]
    return [table for table in tables if table is not None]


def _read(config: TableConfig, data: Path) -> Table:
    return read_table(data / config.file, config.file, config.missing)
