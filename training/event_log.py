"""People's events as arrays in the order of time, and the moments at which a service would have been refreshed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.dataset import Interaction

DAY = 86_400.0
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EventLog:
    """Events of a positive value, oldest first; those of the same time keep the file's order.

    `people` [n] are places in `person_ids`, `items` [n] catalogue rows of `item_count`, `times` [n] seconds since 1970.
    """

    person_ids: tuple[str, ...]
    people: Integers
    items: Integers
    times: Floats
    item_count: int

    def __len__(self) -> int:
        """The number of events."""
        return len(self.times)

    @classmethod
    def of(cls, interactions: Iterable[Interaction], row_of_item: Mapping[str, int]) -> "EventLog":
        """The log of a dataset's interactions; the place of a person follows their id, not the file's order."""
        events = [event for event in interactions if event.value > 0]
        person_ids = tuple(sorted({event.user_id for event in events}))
        place = {person_id: number for number, person_id in enumerate(person_ids)}
        times = np.array([event.timestamp for event in events], dtype=np.float64)
        order = np.argsort(times, kind="stable")
        people = np.array([place[event.user_id] for event in events], dtype=np.int64)
        items = np.array([row_of_item[event.item_id] for event in events], dtype=np.int64)
        return cls(person_ids, people[order], items[order], times[order], len(row_of_item))

    def before(self, time: float) -> "EventLog":
        """The events strictly before `time`: all that could be known then."""
        end = int(np.searchsorted(self.times, time, side="left"))
        return EventLog(self.person_ids, self.people[:end], self.items[:end], self.times[:end], self.item_count)

    def counts(self, start: float = -np.inf, end: float = np.inf) -> Floats:
        """How many events each item has from `start` to before `end`, float64 [N]."""
        first, last = np.searchsorted(self.times, [start, end], side="left")
        return np.bincount(self.items[first:last], minlength=self.item_count).astype(np.float64)

    def last_refresh(self, time: float, days: float) -> float:
        """The newest refresh at or before `time`, where there is one every `days` from the first event on."""
        start = float(self.times[0]) if len(self) else 0.0
        return start + float(np.floor((time - start) / (days * DAY))) * days * DAY

    @property
    def now(self) -> float:
        """Just after the newest event: what a release of the whole log knows is what lies before this."""
        return float(np.nextafter(self.times[-1], np.inf)) if len(self) else 0.0
