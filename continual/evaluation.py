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


@dataclass(frozen=True)
class Judgement:
    """A new head beside the live one, on each kind of held-out words by itself: a loss on one hides behind no other.

    Attributes:
        old: on the instructions that the trained run held out.
        earlier: on what earlier turns held out of their feedback.
        new: on what this turn held out of its feedback.
        trained: on the instructions as in `old`, but beside the head as it was trained, before any feedback; none
            where that is not to be had.
    """

    old: Comparison
    earlier: Comparison
    new: Comparison
    trained: Comparison

    def reason_against(self, budget: float, drift: float) -> str | None:
        """Why the new head may not go live; None if it may.

        The measured difference decides, not the ends of its interval, which few examples leave wide. One single example
        decides nothing, and few of people's decide nothing.

        Args:
            budget: points that may be lost in one turn.
            drift: points that may be lost since the training, in all turns together.
        """
        for comparison, name, most, fewest in (
            (self.old, "old held-out instructions", budget, 0),
            (self.earlier, "earlier held-out feedback", budget, FEWEST),
            (self.new, "held-out feedback", budget, FEWEST),
            (self.trained, "old held-out instructions since the training", drift, 0),
        ):
            if comparison.change is None or comparison.examples < fewest:
                continue
            lost = -comparison.change.value
            if lost > most and round(lost * comparison.examples / 100) > 1:
                return f"accuracy on {name} falls by more than {most:g} points: {comparison.described()}"
        return None
