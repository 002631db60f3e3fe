"""How the loop's way of re-tuning a head holds over time: a stream of labelled texts, cut into steps by date.

Each system learns the steps one after the other and is measured after each on all steps. What is measured on is never
learned from, and what is chosen is chosen on texts of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluation.bootstrap import Bootstrap, Estimate

from .head_update import Anchor, Examples, HeadWeights, choose_head, update_head
from .old_skill import drawn_rows
from .settings import ContinualSettings

TRAIN, VALIDATION = 0.60, 0.15
"""Shares of the texts; the rest is measured on."""
NO_ANCHOR = Anchor(1e-6)
"""All but none: so little that only ties are decided by it."""
FULL_PENALTIES = (3e-4, 1e-4, 3e-5)
"""Of a head trained from nothing, on the squared length of its weights."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Texts as vectors, with their labels, in steps.

    Attributes:
        vectors: float32 [n, H].
        label_ids: [n].
        labels: the names, K of them; also of later steps, as a live head has a row for each label there is.
        step: the step of each text, from 0, [n].
        part: "train", "validation" or "test" of each text, [n].
        spans: from when to when each step goes.
    """

    vectors: npt.NDArray[np.float32]
    label_ids: Ids
    labels: tuple[str, ...]
    step: Ids
    part: npt.NDArray[np.str_]
    spans: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.spans)

    def examples(self, part: str, steps: Sequence[int]) -> Examples:
        """The texts of a part of some steps, all weighing the same."""
        rows = np.isin(self.step, steps) & (self.part == part)
        return Examples(self.vectors[rows], self.label_ids[rows], np.ones(int(rows.sum())))

    def empty_head(self) -> HeadWeights:
        """A head of zeros."""
        labels, width = len(self.labels), self.vectors.shape[1]
        return HeadWeights(np.zeros((labels, width), np.float32), np.zeros(labels, np.float32))


def parts_of(texts: Sequence[str]) -> npt.NDArray[np.str_]:
    """The part of each text, by its hash: the same text is always in the same part."""
    places = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 for text in texts]
    return np.array(
        ["train" if one < TRAIN else "validation" if one < TRAIN + VALIDATION else "test" for one in places]
    )


def equal_steps(moments: npt.ArrayLike, steps: int) -> Ids:
    """The step of each moment, so that all steps hold as many texts, in the order of time; [n]."""
    order = np.argsort(np.asarray(moments), kind="stable")
    step = np.empty(len(order), dtype=np.int64)
    step[order] = np.arange(len(order)) * steps // len(order)
    return step


@dataclass(frozen=True)
class System:
    """One way to follow a stream: the head after step `t`, from that after the step before."""

    name: str
    learn: Callable[[Stream, int, HeadWeights | None], HeadWeights]


def full_retraining(stream: Stream, step: int, _: HeadWeights | None) -> HeadWeights:
    """From nothing, on all texts so far; the penalty is chosen on validation texts of all steps so far."""
    seen = range(step + 1)
    new, nothing = stream.examples("train", seen), Examples.none(stream.vectors.shape[1])
    anchors = [Anchor(penalty) for penalty in FULL_PENALTIES]
    return choose_head(stream.empty_head(), new, nothing, [stream.examples("validation", seen)], anchors, 0).head


def naive_tuning(stream: Stream, step: int, old: HeadWeights | None) -> HeadWeights:
    """On the new texts alone, with nothing to hold the head."""
    if old is None:
        return full_retraining(stream, step, old)
    nothing = Examples.none(stream.vectors.shape[1])
    return update_head(old, stream.examples("train", [step]), nothing, NO_ANCHOR)


def continual(settings: ContinualSettings, *, replays: bool = True, holds: bool = True) -> System:
    """As `make tune` does it; or without its replay, or without its anchor."""

    def learn(stream: Stream, step: int, old: HeadWeights | None) -> HeadWeights:
        if old is None:
            return full_retraining(stream, step, old)
        earlier = range(step)
        memory = stream.examples("train", earlier)
        rows = drawn_rows(len(memory), settings.replay if replays else 0, settings.seed + step)
        replay = Examples(memory.vectors[rows], memory.label_ids[rows], memory.weights[rows])
        validations = [stream.examples("validation", part) for part in (earlier, [step])]
        anchors = settings.anchors if holds else [NO_ANCHOR]
        new = stream.examples("train", [step])
        return choose_head(old, new, replay, validations, anchors, settings.replay_ratio).head

    what = {(True, True): "continual", (True, False): "replay alone", (False, True): "anchor alone"}[replays, holds]
    return System(what, learn)


@dataclass(frozen=True)
class Course:
    """What became of one system on a stream.

    Attributes:
        name: the system's.
        accuracy: after step t on the test texts of step j, at [t, j]; 0 to 1.
        average: after each step, the mean over the steps so far, [steps].
        final: the last of these, with a 95 % interval over the test texts, in points.
        forgetting: the mean over all steps but the last of the best accuracy there was before the last step less that
            after it (Chaudhry et al., arXiv 1801.10112), likewise. A best of several is high by chance alone.
        backward: the mean over those steps of the accuracy just after learning less that at the end, likewise.
        learned: the mean accuracy on each step just after learning it, in points.
    """

    name: str
    accuracy: npt.NDArray[np.float64]
    average: npt.NDArray[np.float64]
    final: Estimate
    forgetting: Estimate
    backward: Estimate
    learned: float


def follow_stream(stream: Stream, system: System, seed: int = 0, say: Callable[[str], object] | None = None) -> Course:
    """Let a system learn all steps in turn, and measure it after each."""
    steps, head, right = stream.steps, None, []
    tests = [stream.examples("test", [step]) for step in range(steps)]
    for step in range(steps):
        head = system.learn(stream, step, head)
        right.append([head.best_labels(test.vectors) == test.label_ids for test in tests])
        if say:
            say(f"{system.name}: step {step + 1} of {steps}")
    # [steps j][n_j, t]: whether the head after step t was right on each test text of step j.
    correct = [np.stack([right[step][one] for step in range(steps)], axis=1) for one in range(steps)]
    observed = np.stack([part.mean(axis=0) for part in correct], axis=1)
    resampled = np.stack(
        [Bootstrap(len(part), seed + one).sums(part) / len(part) for one, part in enumerate(correct)], axis=2
    )
    return Course(
        name=system.name,
        accuracy=observed,
        average=np.array([observed[step, : step + 1].mean() for step in range(steps)]),
        final=_estimate(_final, observed, resampled),
        forgetting=_estimate(_forgetting, observed, resampled),
        backward=_estimate(_backward, observed, resampled),
        learned=100 * float(np.diagonal(observed).mean()),
    )


def _final(accuracy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(accuracy[..., -1, :].mean(axis=-1))


def _forgetting(accuracy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    steps = accuracy.shape[-1]
    # Before a step was learned, what is right on it is no skill that could be forgotten.
    best = [accuracy[..., one : steps - 1, one].max(axis=-1) for one in range(steps - 1)]
    return np.asarray(np.mean([top - accuracy[..., -1, one] for one, top in enumerate(best)], axis=0))


def _backward(accuracy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    steps = accuracy.shape[-1]
    return np.asarray(np.mean([accuracy[..., one, one] - accuracy[..., -1, one] for one in range(steps - 1)], axis=0))


def _estimate(
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    observed: npt.NDArray[np.float64],
    resampled: npt.NDArray[np.float64],
) -> Estimate:
    low, high = np.percentile(100 * statistic(resampled), [2.5, 97.5])
    return Estimate(100 * float(statistic(observed)), float(low), float(high))
