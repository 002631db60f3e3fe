"""What people did before, as ranking examples: leave the last event out and ask for it (leave-one-out)."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.dataset import Interaction


@dataclass(frozen=True)
class HistoryExample:
    """A person's earlier catalogue rows, newest first, and the next one. `held_out` people are measured, not fitted."""

    history: tuple[int, ...]
    target: int
    held_out: bool


def history_examples(
    interactions: Iterable[Interaction], row_of_item: Mapping[str, int], max_history: int
) -> list[HistoryExample]:
    """One example a person with at least two events of a positive value; a fifth of the people are held out.

    Events at the same time keep the file's order. Who is held out depends on the user id alone.
    """
    events: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        if interaction.value > 0:
            events.setdefault(interaction.user_id, []).append(interaction)
    examples = []
    for user_id, own in sorted(events.items()):
        own.sort(key=lambda event: event.timestamp)
        rows = [row_of_item[event.item_id] for event in own]
        if len(rows) > 1:
            held_out = hashlib.sha256(user_id.encode()).digest()[0] % 5 == 0
            examples.append(HistoryExample(tuple(rows[-2::-1][:max_history]), rows[-1], held_out))
    return examples


def pair_with_queries(examples: Sequence[HistoryExample], relevant: Sequence[Mapping[int, float]]) -> list[int | None]:
    """For each example the number of a query that its target answers, or None.

    Earlier queries are preferred; a query is used again only after every other one of the same item was.
    """
    queries: dict[int, list[int]] = {}
    for number, grades in enumerate(relevant):
        for row in grades:
            queries.setdefault(row, []).append(number)
    used: dict[int, int] = {}
    pairs: list[int | None] = []
    for example in examples:
        candidates = queries.get(example.target)
        if not candidates:
            pairs.append(None)
            continue
        turn = used.get(example.target, 0)
        used[example.target] = turn + 1
        pairs.append(candidates[turn % len(candidates)])
    return pairs
