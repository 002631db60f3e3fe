"""Puts instructions into splits: as given, drawn by hash, or held out where there is no validation split."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from training.column_config import SplitSettings
from training.dataset import SPLITS, Instruction, Split, wording
from training.dataset_tables import Table, shorten
from training.errors import DatasetError


def read_splits(
    table: Table, config: SplitSettings, texts: Sequence[str], labels: Sequence[str]
) -> tuple[list[Split], list[str]]:
    """The split of each row, and its group, whose rows stay together: the cell in `by`, without that its text.

    Raises:
        DatasetError: A column is missing, a given value is no split, or a group is empty.
    """
    splits = _given(table, config) if config.column else cast("list[Split]", ["train"] * len(texts))
    groups = table.column(config.by).tolist() if config.by else list(texts)
    if not config.draw:
        return splits, groups
    drawn = [row for row, split in enumerate(splits) if split == "train"]
    if config.by:
        empty = [split == "train" and not group for split, group in zip(splits, groups, strict=True)]
        table.reject(empty, config.by, "empty group", "name the row's group, or leave `by` out")
    strata = [labels[row] for row in drawn] if config.stratify else None
    found = draw_splits([groups[row] for row in drawn], config.draw, config.seed, strata)
    for row, split in zip(drawn, found, strict=True):
        splits[row] = split
    return splits, groups


def _given(table: Table, config: SplitSettings) -> list[Split]:
    column = config.column or ""
    cells = table.column(column)
    if not config.map:
        table.reject(~cells.isin(SPLITS), column, "unknown split", f"write one of {', '.join(SPLITS)}, or add a map")
        return cast("list[Split]", cells.tolist())
    unknown = ~cells.isin(list(config.map))
    if unknown.any():
        problem = f"the split's map has no entry for {shorten(cells[unknown].iloc[0])}"
        table.reject(unknown, column, problem, f"add it to the map, which has {', '.join(config.map)}")
    return [config.map[cell] for cell in cells]


def draw_splits(
    groups: Sequence[str], shares: Mapping[Split, float], seed: int, strata: Sequence[str] | None = None
) -> list[Split]:
    """A split for each row; rows of one group always share it, and the order of the rows does not matter.

    Without `strata` a group's split follows from the hash of its name alone: it stays when rows are added. With
    `strata` (a value for each row) the groups of each stratum are divided in the order of their hashes, so that each
    stratum has the shares of the whole, and rows added can move the groups at the borders; every stratum keeps at least
    one row in train. A group of several strata counts for its rarest (as in Sechidis et al. 2011).
    """
    positions = {group: _position(group, seed) for group in set(groups)}
    if strata is None:
        splits = {group: _split_at(position, shares) for group, position in positions.items()}
        return [splits[group] for group in groups]
    members: dict[str, set[str]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        members.setdefault(stratum, set()).add(group)
    splits = {}
    # The rarest first: its groups are no longer free when the others are divided.
    for stratum in sorted(members, key=lambda stratum: (len(members[stratum]), stratum)):
        free = sorted(members[stratum] - splits.keys(), key=lambda group: (positions[group], group))
        splits.update({group: _split_at((place + 0.5) / len(free), shares) for place, group in enumerate(free)})
    for _, own in sorted(members.items()):
        if all(splits[group] != "train" for group in own):
            splits[min(own, key=lambda group: (positions[group], group))] = "train"
    return [splits[group] for group in groups]


def _position(group: str, seed: int) -> float:
    """A number from 0 up to, not including, 1, that looks random and depends on the name and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _split_at(position: float, shares: Mapping[Split, float]) -> Split:
    border = 0.0
    for split in SPLITS:
        border += shares.get(split, 0.0)
        if split in shares and position < border:
            return split
    return next(split for split in reversed(SPLITS) if split in shares)  # the shares may sum to a hair below 1


FEWEST_GROUPS = 5


def complete_splits(
    instructions: Sequence[Instruction], groups: Sequence[str], file: str
) -> tuple[list[Instruction], list[str]]:
    """Make a validation split of a fifth of the training split where there is none, and say what is missing.

    The choice depends on the names of the instructions' `groups` alone (see `read_splits`), so it is the same in every
    run, and a group stays together unless there are fewer than five.

    Raises:
        DatasetError: There is no training split.
    """
    texts = {split: {i.text for i in instructions if i.split == split} for split in SPLITS}
    if not texts["train"]:
        raise DatasetError(f"{file}: no instruction is in the split 'train'; mark the rows to learn from with it")
    completed, notes = list(instructions), []
    if not texts["validation"]:
        taught = {group for i, group in zip(instructions, groups, strict=True) if i.split == "train"}
        if len(taught) < FEWEST_GROUPS:  # one of so few may be nearly all there is
            groups = [i.text for i in instructions]
            taught = {i.text for i in instructions if i.split == "train"}
        held_out = set(sorted(taught, key=lambda group: hashlib.sha256(group.encode()).digest())[1::5])
        completed = [
            replace(i, split="validation") if group in held_out and i.split == "train" else i
            for i, group in zip(instructions, groups, strict=True)
        ]
        count = sum(i.split == "validation" for i in completed)
        notes.append(f"no validation split: {count} training instructions are held out for it")
    if not texts["test"]:
        notes.append("no test split: test metrics are left out")
    said = {split: {wording(text) for text in texts[split]} for split in SPLITS}
    if repeated := len(said["test"] & (said["train"] | said["validation"])):
        notes.append(f"{repeated} test instructions have the very words of a training or validation instruction")
    return completed, notes


def note_unanswered(instructions: Sequence[Instruction], labels_of_items: Sequence[str], file: str) -> list[str]:
    """Notes on labels that no item has.

    Raises:
        DatasetError: No instruction of a split can be answered, so that nothing could be ranked.
    """
    known = set(labels_of_items)
    orphans = Counter(i.label for i in instructions if i.label not in known)
    for split in SPLITS:
        own = [i for i in instructions if i.split == split]
        if own and not any(i.relevant or i.label in known for i in own):
            fix = "map the labels to those of the catalogue, or name relevant items"
            raise DatasetError(f"{file}: no instruction of the split {split!r} has a label that some item has; {fix}")
    if not orphans:
        return []
    names = ", ".join(sorted(orphans))
    return [f"labels that no item has, kept for the head alone: {names} ({sum(orphans.values())} instructions)"]
