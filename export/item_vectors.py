"""Holds a run's item vectors against the encoder: vectors of another one, or in another order, are silently wrong.

A graph's own verification cannot tell, because both sides of it rank the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from export.agreement import cosine
from export.errors import VerificationError
from export.report import Check, VerificationReport
from export.texts import sample
from training.run import Run

__all__ = ["check_item_vectors"]

Floats = npt.NDArray[np.float32]

ITEMS = 32
LENGTH_ERROR = 1e-3


def check_item_vectors(run: Run, embed: Callable[[Sequence[str]], Floats], least_cosine: float) -> tuple[Check, ...]:
    """That every item vector has the length 1, and that those of some items are what the encoder makes of their texts.

    An item whose text has not one token has a vector of zeros.

    Args:
        run: The run.
        embed: Its encoder, texts to vectors [n, H].
        least_cosine: The bar of each of those items.

    Returns:
        The checks, all passed.

    Raises:
        VerificationError: One did not.
    """
    items, vectors = run.catalogue(), run.item_vectors()
    row_of = {item.item_id: row for row, item in enumerate(items)}
    lengths = np.linalg.norm(vectors, axis=1)
    without = [items[row] for row in np.flatnonzero(lengths == 0)]
    chosen = [*sample(items, ITEMS), *sample(without, ITEMS)]
    made = embed([item.text for item in chosen])
    cosines = cosine(vectors[[row_of[item.item_id] for item in chosen]], made)
    checks = (
        Check.at_least("minimum cosine of an item's vector and its text's", float(cosines.min()), least_cosine),
        Check.at_most(
            "greatest error of an item vector's length",
            float(np.abs(lengths[lengths != 0] - 1).max(initial=0)),
            LENGTH_ERROR,
        ),
    )
    report = VerificationReport(graph="item vectors", texts=len(chosen), shapes=(), checks=checks)
    if not report.passed:
        advice = f"The item vectors of run {run.run_id} are not those of its encoder and its items: make a new run."
        raise VerificationError(report, advice=advice)
    return checks
