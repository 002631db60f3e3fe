"""Which items answer an instruction, and how well."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from training.dataset import Instruction, Item


class Relevance:
    """Resolves instructions to graded catalogue rows.

    The grades given with the instruction count, where there are any. Else every item with the instruction's label whose
    attributes equal all those the instruction names has grade 1; where no item does, every item with the label. Items
    that the catalogue no longer has answer nothing.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        """Index the catalogue."""
        self._items = items
        self._row = {item.item_id: row for row, item in enumerate(items)}
        self._rows_of_label: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            self._rows_of_label.setdefault(item.label, []).append(row)
        # Instructions that name the same label and attributes have the same answers, and are many.
        self._answers: dict[tuple[str, tuple[tuple[str, str], ...]], Sequence[int]] = {}

    def row(self, item_id: str) -> int:
        """The catalogue row of an item."""
        return self._row[item_id]

    def rows_of_label(self, label: str) -> Sequence[int]:
        """The catalogue rows of a label, none if no item has it."""
        return self._rows_of_label.get(label, ())

    def grades(self, instruction: Instruction) -> Mapping[int, float]:
        """The relevant catalogue rows of an instruction and their grades, all above 0.

        Empty only where the catalogue has none of the relevant items that the instruction names, or where it names none
        and no item has its label.
        """
        if instruction.relevant:
            known = self._row
            return {known[item_id]: grade for item_id, grade in instruction.relevant.items() if item_id in known}
        key = (instruction.label, tuple(sorted(instruction.attributes.items())))
        if key not in self._answers:
            self._answers[key] = self._answering(instruction)
        return dict.fromkeys(self._answers[key], 1.0)

    def _answering(self, instruction: Instruction) -> Sequence[int]:
        with_label = self._rows_of_label.get(instruction.label, [])
        wanted = instruction.attributes.items()
        if not wanted:
            return with_label
        return [row for row in with_label if wanted <= self._items[row].attributes.items()] or with_label

    def vector(self, grades: Mapping[int, float]) -> npt.NDArray[np.float32]:
        """Grades as a dense vector over the catalogue, float32 [N]."""
        dense = np.zeros(len(self._items), dtype=np.float32)
        dense[list(grades)] = list(grades.values())
        return dense
