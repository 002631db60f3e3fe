"""Promote, drop, or wait: what the evidence says of a canary. Each of three questions is answered for itself.

A canary is promoted when all three say that it is no worse than the margin allows, and dropped as soon as one says that
it is worse than that; until then more is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..gates.latency import LatencyComparison
from ..gates.settings import CanarySettings
from .evidence import FeedbackOfBoth, People, Requests
from .sequential import Interval, Rate, difference, error_rate

FEWEST_SUCCESSES = 20
"""Of both together, before feedback is judged: with fewer the normal approximation does not hold."""


class Outcome(Enum):
    """What is to be done."""

    PROMOTE = "promote"
    DROP = "drop"
    WAIT = "wait"


@dataclass(frozen=True)
class Judgement:
    """What one kind of evidence says.

    Attributes:
        of: "errors", "latency", "feedback", or "answers": the canary does not.
        outcome: PROMOTE: no worse than allowed; DROP: worse; WAIT: it cannot tell yet.
        words: why, with numbers.
    """

    of: str
    outcome: Outcome
    words: str


@dataclass(frozen=True)
class Verdict:
    """What all of it says."""

    judgements: tuple[Judgement, ...]

    @property
    def outcome(self) -> Outcome:
        """What is to be done."""
        said = {one.outcome for one in self.judgements}
        if Outcome.DROP in said:
            return Outcome.DROP
        return Outcome.WAIT if Outcome.WAIT in said else Outcome.PROMOTE

    def reason(self) -> str:
        """What decided, in one line."""
        deciding = [one for one in self.judgements if one.outcome is self.outcome]
        return "; ".join(f"{one.of}: {one.words}" for one in deciding)


def judge_errors(live: Requests, canary: Requests, settings: CanarySettings) -> Judgement:
    """Compare the shares of people's requests that failed, each with an interval of its own.

    Each holds at half the level, so their difference holds at the whole (Bonferroni). How many of those answered, and
    of those that failed, were nobody's is known as a bound alone (`Requests.own`, `own_failed`), so each interval holds
    for any number up to it.
    """
    if canary.answered + canary.failed == 0 or live.answered + live.failed == 0:
        return Judgement("errors", Outcome.WAIT, "one of the two has answered nobody yet")
    before, after = (_failures(one) for one in (live, canary))
    low, high = after.low - before.high, after.high - before.low
    words = (
        f"{_share(canary)} failed, of the live release {_share(live)}; at 95 % {100 * low:+.2f} to {100 * high:+.2f} "
        f"points apart, allowed {100 * settings.error_margin:+.2f}"
    )
    return Judgement("errors", _decide(-high, -low, -settings.error_margin), words)


def judge_latency(found: LatencyComparison | None, live: Requests, canary: Requests) -> Judgement:
    """Compare the times of answers by requests sent in turns; what all requests took is told beside it."""
    if found is None:
        return Judgement("latency", Outcome.WAIT, "the live release does not answer")
    outcome = Outcome.DROP if found.is_over else Outcome.PROMOTE if found.is_within else Outcome.WAIT
    words = f"{found}; all requests to them took {canary.mean_ms:.1f} and {live.mean_ms:.1f} ms in the mean"
    return Judgement("latency", outcome, words)


def judge_feedback(found: FeedbackOfBoth | None, settings: CanarySettings) -> Judgement:
    """Compare the rates of success by impression, with people as the unit."""
    if found is None:
        return Judgement("feedback", Outcome.WAIT, "there is none yet; `client.feedback(…)` sends it")
    sides = {"live": found.live, "canary": found.canary}
    if (few := min(len(one.shown) for one in sides.values())) < settings.min_people:
        words = f"{few} people with an impression in the smaller group, {settings.min_people} are needed"
        return Judgement("feedback", Outcome.WAIT, words + _notes(found))
    live, canary = (Rate.of(*side.columns()) for side in sides.values())
    if live.successes + canary.successes < FEWEST_SUCCESSES:
        words = f"{live.successes + canary.successes:.0f} {settings.event}s in all, {FEWEST_SUCCESSES} are needed"
        return Judgement("feedback", Outcome.WAIT, words + _notes(found))
    apart = difference(live, canary)
    margin = settings.feedback_margin * live.value
    words = (
        f"{_rate(canary, found.canary, settings)}, live {_rate(live, found.live, settings)}; at 95 % "
        f"{100 * apart.low:+.2f} to {100 * apart.high:+.2f} points apart, allowed {-100 * margin:+.2f}"
    )
    outcome = _decide(apart.low, apart.high, -margin)
    return Judgement("feedback", outcome, words + _more(apart, margin, outcome) + _notes(found))


def _decide(low: float, high: float, allowed: float) -> Outcome:
    """Of a difference that is better the greater it is."""
    if low > allowed:
        return Outcome.PROMOTE
    return Outcome.DROP if high < allowed else Outcome.WAIT


def _more(apart: Interval, margin: float, outcome: Outcome) -> str:
    """How much more is needed, roughly: an interval shrinks with the root of the people."""
    room = abs(apart.value + margin)
    if outcome is not Outcome.WAIT or room <= 0:
        return ""
    times = ((apart.high - apart.low) / 2 / room) ** 2
    return f"; if it stays so, about {times:.1f} times as many people decide" if times < 100 else "; it is a close call"


def _failures(one: Requests) -> Interval:
    """The share that failed, however many of our own requests are among those answered and those that failed."""
    failed = max(0, one.failed - one.own_failed)
    least = error_rate(failed, one.answered + failed, level=0.025)
    most = error_rate(one.failed, _peoples(one) + one.failed, level=0.025)
    return Interval(most.value, least.low, most.high)


def _peoples(one: Requests) -> int:
    """So many of people's requests were answered at least."""
    return max(0, one.answered - one.own)


def _share(one: Requests) -> str:
    ours = min(one.own, one.answered) + min(one.own_failed, one.failed)
    own = f" (up to {ours:,} of them our own)" if ours else ""
    return f"{one.failed:,} of {one.answered + one.failed:,} requests{own}"


def _rate(rate: Rate, people: People, settings: CanarySettings) -> str:
    return (
        f"{100 * rate.value:.2f} {settings.event}s in 100 impressions ({rate.successes:.0f} of {rate.trials:.0f}, "
        f"{len(people.shown)} people)"
    )


def _notes(found: FeedbackOfBoth) -> str:
    parts = []
    if found.of_both:
        parts.append(f"{found.of_both} people met both and count where they were shown more")
    if found.not_shown:
        parts.append(f"left out: {found.not_shown} of which no impression has come in since")
    if found.of_nobody:
        parts.append(f"left out: {found.of_nobody} events without a person")
    return f" ({'; '.join(parts)})" if parts else ""
