"""Which labels are taken for which."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.evaluation.inputs import Labels

PAIRS = 15
WORST = 12


def confusions(predicted: Labels, label_ids: Labels, labels: Sequence[str]) -> dict[str, Any]:
    """The most frequent confusions, and the table of counts among the labels that take part in most errors.

    `matrix[i][j]` counts the instructions of `worst_labels[i]` that were read as `worst_labels[j]`; `others[i]` those
    that were read as a label outside the table.
    """
    pairs = list(zip(label_ids.tolist(), predicted.tolist(), strict=True))
    support = Counter(label_ids.tolist())
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    errors: Counter[int] = Counter()
    for (true, said), count in wrong.items():
        errors[true] += count
        errors[said] += count
    # Sorted by label id too: equal counts must not depend on the order in which they were met.
    frequent = sorted(wrong.items(), key=lambda entry: (-entry[1], entry[0]))[:PAIRS]
    worst = sorted(sorted(errors), key=lambda label: -errors[label])[:WORST]
    place = {label: number for number, label in enumerate(worst)}
    matrix, others = np.zeros((len(worst), len(worst)), dtype=int), [0] * len(worst)
    for true, said in pairs:
        if true in place and said in place:
            matrix[place[true], place[said]] += 1
        elif true in place:
            others[place[true]] += 1
    return {
        "errors": sum(wrong.values()),
        "instructions": len(pairs),
        "frequent": [
            {"label": labels[true], "read_as": labels[said], "count": count, "of": support[true]}
            for (true, said), count in frequent
        ],
        "worst_labels": [labels[label] for label in worst],
        "matrix": matrix.tolist(),
        "others": others,
    }
