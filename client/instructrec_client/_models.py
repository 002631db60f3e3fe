"""What a call returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

__all__ = ["Item", "Reason", "Recommendations"]


@dataclass(frozen=True)
class Reason:
    """The four terms whose sum is an item's score.

    Attributes:
        instruction: How near the item's text is to the instruction.
        label: How probable the item's label is, given the instruction.
        history: How near the item is to the person's recent items; 0 without a history.
        prior: What the catalogue itself says in the item's favour.
    """

    instruction: float
    label: float
    history: float
    prior: float

    @property
    def total(self) -> float:
        """The sum of the terms: the score, but for rounding."""
        return self.instruction + self.label + self.history + self.prior


@dataclass(frozen=True)
class Item:
    """One recommended item."""

    item_id: str
    title: str
    label: str
    score: float
    reason: Reason


@dataclass(frozen=True, repr=False)
class Recommendations(Sequence[Item]):
    """The answer to one instruction: a sequence of items, best first.

    Attributes:
        items: At most k; fewer only where the catalogue has fewer.
        release: The release that answered.
        model_version: The version of the model that answered.
    """

    items: tuple[Item, ...]
    release: str
    model_version: str

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        """Return the item at a rank that starts at 0, or the items of a slice."""
        return self.items[index]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __repr__(self) -> str:
        """Show where the answer came from and one line an item, the first ten."""
        head = f"<Recommendations: {len(self)} item{'' if len(self) == 1 else 's'} from release {self.release}"
        lines = [
            f"  {rank}. {item.title} [{item.label}] {item.item_id} {item.score:.3f}"
            for rank, item in enumerate(self.items[:10], start=1)
        ]
        if len(self) > 10:
            lines.append(f"  … and {len(self) - 10} more")
        return "\n".join([head, *lines]) + ">"
