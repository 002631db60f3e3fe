"""What people did before, as ranking examples: leave the last event out and ask for it (leave-one-out)."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.dataset import Interaction


@dataclass(frozen=True)
class HistoryExample:
    """A person's earlier catalogue rows, newest first, and the next one. `held_out` people are measured, not fitted.

    `excluded` are rows that may not be answered. `time` is the target's, `events` counts all the person's events and
    `user_id` names them. `whole` are all earlier rows, of which `history` has the newest.
    """

    history: tuple[int, ...]
    target: int
    held_out: bool
    excluded: tuple[int, ...] = ()
    time: float = 0.0
    events: int = 0
    user_id: str = ""
    whole: tuple[int, ...] = ()


def history_examples(
    interactions: Iterable[Interaction],
    row_of_item: Mapping[str, int],
    max_history: int,
    *,
    exclude_seen: bool = False,
) -> list[HistoryExample]:
    """One example a person with at least two events of a positive value; a fifth of the people are held out.

    A history holds what came strictly before the target: of events at the same time none knows of another, for a
    file's order within a basket means nothing. Which of several last events is the target, and who is held out,
    depends on hashes of the ids alone. With `exclude_seen` the target is the last item that is new to the person, and
    each item of the history counts once.
    """
    events: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        if interaction.value > 0:
            events.setdefault(interaction.user_id, []).append(interaction)
    examples = []
    for user_id, own in sorted(events.items()):
        target = _target(user_id, _first_choices(own) if exclude_seen else own)
        before = sorted((event for event in own if event.timestamp < target.timestamp), key=lambda e: e.timestamp)
        rows = [row_of_item[event.item_id] for event in reversed(before)]
        if exclude_seen:
            rows = list(dict.fromkeys(rows))
        if len(own) > 1:
            examples.append(
                HistoryExample(
                    tuple(rows[:max_history]),
                    row_of_item[target.item_id],
                    _digest(user_id)[0] % 5 == 0,
                    tuple(rows) if exclude_seen else (),
                    target.timestamp,
                    len(own),
                    user_id,
                    tuple(rows),
                )
            )
    return examples


def _first_choices(events: Sequence[Interaction]) -> list[Interaction]:
    first: dict[str, Interaction] = {}
    for event in sorted(events, key=lambda event: event.timestamp):
        first.setdefault(event.item_id, event)
    return list(first.values())


def _target(user_id: str, events: Sequence[Interaction]) -> Interaction:
    last = max(event.timestamp for event in events)
    return min(
        (event for event in events if event.timestamp == last), key=lambda event: _digest(f"{user_id} {event.item_id}")
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


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
