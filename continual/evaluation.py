"""Holds a new head against the live one, on what is new and on what is old, and decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.evaluation.bootstrap import Bootstrap, Estimate

from .head_update import Examples, HeadWeights, Vectors

FEWEST = 20
"""Held-out new examples below which they are reported, but decide nothing."""


@dataclass(frozen=True)
class Comparison:
    """Top-1 accuracy before and after on the same examples.

    Attributes:
        examples: how many.
        before, after: accuracy, 0 to 1; None where there are no examples.
        change: after less before with the 95 % interval of a paired bootstrap, in points.
    """

    examples: int
    before: float | None = None
    after: float | None = None
    change: Estimate | None = None

    def described(self) -> str:
        """One line."""
        if self.before is None or self.after is None or self.change is None:
            return "none held out"
        one = self.change
        return (
            f"{100 * self.before:.1f} % before, {100 * self.after:.1f} % after "
            f"({one.value:+.1f} points, 95 % {one.low:+.1f} to {one.high:+.1f}, n = {self.examples:,})"
        )


def compare_heads(
    before: HeadWeights, after: HeadWeights, examples: Examples, seed: int = 0, vectors_after: Vectors | None = None
) -> Comparison:
    """Measure both heads on the same examples.

    Args:
        before: the old head.
        after: the new head.
        examples: as the encoder before has them.
        seed: of the bootstrap.
        vectors_after: the examples' vectors by the encoder after, float32 [n, H]; None where it is the same.
    """
    if not len(examples):
        return Comparison(0)
    seen = examples.vectors if vectors_after is None else vectors_after
    right = [
        (head.best_labels(vectors) == examples.label_ids).astype(np.float64)
        for head, vectors in ((before, examples.vectors), (after, seen))
    ]
    change = Bootstrap(len(examples), seed).mean(100 * (right[1] - right[0])).estimate()
    return Comparison(len(examples), float(right[0].mean()), float(right[1].mean()), change)


def reason_against(old: Comparison, new: Comparison, budget: float) -> str | None:
    """Why a new head may not go live; None if it may.

    The measured difference decides, not the ends of its interval, which few examples leave wide. One single example
    decides nothing.

    Args:
        old: on old held-out instructions.
        new: on held-out feedback.
        budget: points that may be lost.
    """
    for comparison, name in ((old, "old held-out instructions"), (new, "held-out feedback")):
        if comparison.change is None or (comparison is new and comparison.examples < FEWEST):
            continue
        lost = -comparison.change.value
        if lost > budget and round(lost * comparison.examples / 100) > 1:
            return f"accuracy on {name} falls by more than {budget:g} points: {comparison.described()}"
    return None
