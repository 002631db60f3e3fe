"""Answers the questions in turn, and holds the outcome against where it started."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.settings import ServingSettings
from sweep.candidates import QUESTIONS, Question, changed
from sweep.stage import Candidate, Rates, gain

__all__ = ["Measured", "Outcome", "Trial", "search"]

LEAST_GAIN = 1.02
"""Less is not worth a change, and not more than what two runs of the same settings differ by."""
WAIT_SECONDS = 1.0
"""How long a request may wait before it is refused: the longest queue is what is answered in that time."""
QUEUE_STEP = 32
QUEUE_DIFFERENCE = 0.25
"""A longest queue that is so close to the measured one is left as it is."""

Measure = Callable[[str, Sequence[Candidate]], list[Rates]]


class Measured(BaseModel):
    """One candidate of a trial.

    Attributes:
        name: what it changes, in words.
        settings: all of the `serving` section.
        batching: whether Triton joined requests.
        p50_ms: by number in flight, a round each.
        per_second: likewise, answers a second.
        gain: how much faster it answered than the trial's first candidate, a round each; see `sweep.stage.gain`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    settings: ServingSettings
    batching: bool
    p50_ms: dict[int, tuple[float, ...]]
    per_second: dict[int, tuple[float, ...]]
    gain: tuple[float, ...]

    @property
    def is_better(self) -> bool:
        """Whether it is worth a change, and faster in every round."""
        return float(np.median(self.gain)) >= LEAST_GAIN and min(self.gain) > 1


class Trial(BaseModel):
    """One question and what was measured; the first candidate is how it was before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    measured: tuple[Measured, ...]

    @property
    def best(self) -> Measured:
        """The candidate with the greatest gain among those that are better than the first, or that one."""
        better = [one for one in self.measured[1:] if one.batching and one.is_better]
        return max(better, key=lambda one: float(np.median(one.gain)), default=self.measured[0])


class Outcome(BaseModel):
    """All of a sweep.

    Attributes:
        trials: a question each; the last sets the outcome beside the settings of before, and shows what joining
            requests is worth.
        before: the settings it started from.
        after: the best found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: tuple[Trial, ...]
    before: ServingSettings
    after: ServingSettings

    def changes(self, written: ServingSettings) -> dict[str, Any]:
        """The keys that are to be changed where the `serving` section is `written`, so that it is what was measured."""
        now = written.model_dump()
        return {key: value for key, value in self.after.model_dump().items() if value != now[key]}

    def not_compared(self, written: ServingSettings) -> list[str]:
        """Those of `changes` that this sweep did not find: it started from them, and measured all else with them."""
        found = self.changes(self.before)
        return [key for key in self.changes(written) if key not in found]


def search(
    settings: ServingSettings,
    cores: int,
    measure: Measure,
    *,
    fixed: Collection[str] = (),
    questions: Sequence[Question] = QUESTIONS,
    tell: Callable[[Trial], object] = lambda _: None,
) -> Outcome:
    """Try what the questions ask, each around the best so far.

    Args:
        settings: to start from.
        cores: of the server.
        measure: measures candidates under a question's name.
        fixed: settings that are not to be changed.
        questions: in order.
        tell: is told each trial as soon as it is measured.
    """
    best, trials = settings, []
    for question in questions:
        candidates = _candidates(best, question.answers(best, cores), fixed)
        if len(candidates) > 1:
            trials.append(_trial(question.name, candidates, measure))
            tell(trials[-1])
            best = trials[-1].best.settings
    before = [Candidate("as it was", settings)] if best != settings else []
    candidates = [*before, Candidate("the best" if before else "as it was", best)]
    candidates.append(Candidate(f"{candidates[-1].name}, requests not joined", best, batching=False))
    trials.append(_trial("all together", candidates, measure))
    tell(trials[-1])
    kept = trials[-1].best
    after = kept.settings if "max_queue_size" in fixed else _with_queue(kept)
    return Outcome(trials=tuple(trials), before=settings, after=after)


def _candidates(best: ServingSettings, answers: Sequence[Mapping[str, Any]], fixed: Collection[str]) -> list[Candidate]:
    found = [Candidate("as it is", best)]
    for answer in answers:
        changes = {key: value for key, value in answer.items() if key not in fixed}
        settings = changed(best, changes)
        if settings not in [one.settings for one in found]:
            found.append(Candidate(", ".join(map(_in_words, changes.items())), settings))
    return found


def _in_words(change: tuple[str, Any]) -> str:
    key, value = change
    return f"{key} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _trial(question: str, candidates: Sequence[Candidate], measure: Measure) -> Trial:
    rates = measure(question, candidates)
    return Trial(
        question=question,
        measured=tuple(
            Measured(
                name=candidate.name,
                settings=candidate.settings,
                batching=candidate.batching,
                p50_ms=dict(one.p50_ms),
                per_second=dict(one.per_second),
                gain=gain(one, rates[0]),
            )
            for candidate, one in zip(candidates, rates, strict=True)
        ),
    )


def _with_queue(measured: Measured) -> ServingSettings:
    """The settings with the longest queue that the measured rate works off in `WAIT_SECONDS`.

    Who lets any number wait, by 0, has chosen so.
    """
    rate = float(np.median(measured.per_second[max(measured.per_second)]))
    longest = max(2 * measured.settings.max_batch_size, round(rate * WAIT_SECONDS / QUEUE_STEP) * QUEUE_STEP)
    now = measured.settings.max_queue_size
    if now == 0 or abs(longest - now) <= QUEUE_DIFFERENCE * now:
        return measured.settings
    return changed(measured.settings, {"max_queue_size": longest})
