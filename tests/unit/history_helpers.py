"""A small shop with a past: what the tests of histories, taste and their measurement share."""

from collections.abc import Callable

import numpy as np

from training.dataset import Interaction
from training.event_log import DAY, EventLog
from training.history import HistoryExample, history_examples
from training.priors import YEAR
from training.score import CatalogueSide

ITEMS = 12
ROWS = {f"i{row}": row for row in range(ITEMS)}
RELEASED = np.array([-row * YEAR for row in range(ITEMS - 1)] + [np.nan])


def event(user: str, row: int, day: float, value: float = 1.0) -> Interaction:
    return Interaction(user, f"i{row}", value, day * DAY)


def log_of(events: list[Interaction]) -> EventLog:
    return EventLog.of(events, ROWS)


def catalogue(items: int = ITEMS, seed: int = 0) -> CatalogueSide:
    vectors = np.random.default_rng(seed).normal(size=(items, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return CatalogueSide(vectors, [0] * items, [0.0] * items)


def known_before(
    interactions: list[Interaction], *, exclude_seen: bool = False
) -> Callable[[float], list[HistoryExample]]:
    def before(time: float) -> list[HistoryExample]:
        earlier = [one for one in interactions if one.timestamp < time]
        return history_examples(earlier, ROWS, 20, exclude_seen=exclude_seen)

    return before


def shop(people: int = 80, seed: int = 0) -> list[Interaction]:
    """Two tastes, items 0 to 4 and 5 to 9, each week another of them in fashion; 10 and 11 are never chosen."""
    generator = np.random.default_rng(seed)
    events = []
    for person in range(people):
        first = generator.uniform(0, 40)
        rows = generator.permutation(5)
        for step in range(5):
            day = first + step * 1.5
            fashion = int(day // 7) % 5
            row = fashion if generator.random() < 0.5 and fashion not in rows[:step] else int(rows[step])
            events.append(event(f"u{person}", row + 5 * (person % 2), day))
    return events
