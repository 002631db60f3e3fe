"""Weigh what is known of a canary, and do what that says, if it is still so by then."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, replace

from ..candidate import WARM_UPS, sample_texts
from ..deploy import Deployment, deploy
from ..errors import BusyError, PublishError, ServerError
from ..gates.latency import compare_latency
from ..gates.settings import CanarySettings
from ..journal import Journal
from ..layout import Layout
from ..live_repository import LiveRepository
from ..probe import probe
from ..releases import ReleaseStore
from ..server import Server, ServerState
from ..watcher import INTERVAL_SECONDS
from .ensemble import Canary, read_canary
from .evidence import Requests, count_requests, read_feedback, refused_since
from .journal import CanaryJournal
from .lifecycle import PATIENCE_SECONDS, PAUSE_SECONDS, current_canary, live_number, running, take_down
from .verdict import Judgement, Outcome, Verdict, judge_errors, judge_feedback, judge_latency

VERDICT_PAIRS = 40
ROUNDS = 10
"""So many requests in turns tell a canary that is broken from one that failed a request: ten seconds or more, in which
the watcher gives a dead step a new stub."""
ROUND_SECONDS = 1.0
ROUND_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Judged:
    """What was judged.

    Attributes:
        canary: as it was then.
        live: the number of the release that it was held against.
        verdict: what the evidence said.
    """

    canary: Canary
    live: int
    verdict: Verdict


@dataclass(frozen=True)
class _Both:
    """What the server counted of both since the canary's evidence began, and what is to be said of it."""

    live: Requests
    canary: Requests
    note: str


def judge(layout: Layout, domain: str, settings: CanarySettings) -> Judged:
    """Weigh what is known of a canary. Nothing is changed but its journal, which counts what is sent to measure it.

    A canary that is judged by its errors, or does not answer, is not looked at further.

    Raises:
        ServingError: there is no canary, the live release does not answer, or the evidence cannot be read.
    """
    state, repository = running(Server(layout))
    canary, live = current_canary(repository, domain), live_number(repository, domain)
    # Counted first, so that the requests that measure latency are not among them.
    both = _count(layout, state, canary, live)
    errors = judge_errors(both.live, both.canary, settings)
    judgements = [replace(errors, words=errors.words + both.note)]
    if errors.outcome is not Outcome.DROP:
        judgements.append(_judge_latency(layout, state, canary, both, settings))
    verdict = Verdict(tuple(judgements))
    if settings.event is not None and verdict.outcome is not Outcome.DROP:
        since = max(canary.start.timestamp(), _live_since(layout, domain).timestamp())
        feedback = read_feedback(
            layout.var, domain, live=live, canary=canary.release, event=settings.event, since=since
        )
        verdict = Verdict((*judgements, judge_feedback(feedback, settings)))
    return Judged(canary, live, verdict)


def act(layout: Layout, judged: Judged) -> Deployment | None:
    """Promote or drop a canary as a verdict says.

    Returns:
        The publication of a canary that was promoted.

    Raises:
        PublishError: another command has changed the canary or the live release since they were judged.
        ServingError: as `deploy` and `take_down`.
    """
    canary, verdict = judged.canary, judged.verdict

    def check() -> None:
        _check_unchanged(layout, judged)

    if verdict.outcome is Outcome.DROP:
        take_down(layout, canary.domain, action="dropped", reason=verdict.reason(), check=check)
    if verdict.outcome is not Outcome.PROMOTE:
        return None
    state, _ = running(Server(layout))
    release = ReleaseStore(layout.releases(canary.domain)).open(canary.release)
    # People's answers have judged it: the gates have nothing to add.
    deployment = deploy(layout, release, state.endpoints, gates=None, verb="canary", forced=canary.forced, check=check)
    journal = CanaryJournal(layout.canary_journal(canary.domain))
    journal.write(canary.release, "promoted", canary.share, verdict.reason())
    return replace(deployment, forced=canary.forced)


def _check_unchanged(layout: Layout, judged: Judged) -> None:
    """Require what was judged to be there still; the caller holds the server's lock."""
    repository, before = LiveRepository(layout.live), judged.canary
    now, live = read_canary(repository, before.domain), repository.live_release(before.domain)
    found = (now and (now.release, now.since), live and live.number)
    if found != ((before.release, before.since), judged.live):
        raise PublishError(
            f"the canary of {before.domain} or the live release has changed since they were judged: nothing was done; "
            "run `make canary-verdict` again"
        )


def _count(layout: Layout, state: ServerState, canary: Canary, live: int) -> _Both:
    """What the server counted of people's requests to both, from one moment on as far as that is known.

    The watcher asks the live release alone, and more often than people do where there are few. It does so every
    `INTERVAL_SECONDS` at most and its requests are answered: so there is a bound, which holds whether it runs or not
    and needs nothing of it. To ask the canary as often would make both look better, the one with fewer people most.
    """
    counted = count_requests(state.endpoints, canary.domain, live)
    try:
        of_canary = count_requests(state.endpoints, canary.model, canary.release)
    except ServerError:
        of_canary = Requests(0, 0, 0.0)  # not loaded, say: whether it answers is looked at next
    started = datetime.datetime.fromisoformat(state.started)
    begun, of_live, note = max(canary.start, started), None, ""
    live_since = _live_since(layout, canary.domain)
    if live_since > begun:
        pass  # the live ensemble was loaded then, both first steps before
    elif started > canary.start:
        of_live, note = counted, "; counted since the server was started"
    elif canary.live_before is None:  # put up by a version that did not write it down
        begun = started
    else:
        of_live = counted.since(canary.live_before)
        of_canary = replace(of_canary, refused=refused_since(of_canary.refused, canary.refused_before))
    if of_live is None:
        of_live = counted
        note = "; the live release was loaded at another moment than the canary, and each is counted since its own"
    elif of_live.first_step != of_canary.first_step and all(
        one.begins_with_own_step(canary.domain) for one in (of_live, of_canary)
    ):
        of_live, of_canary, left_out = _without_refused(of_live, of_canary)
        note += left_out
    sent, failed = CanaryJournal(layout.canary_journal(canary.domain)).sent(canary.release, begun)
    seconds = (datetime.datetime.now(datetime.timezone.utc) - begun).total_seconds()
    probes = int(seconds / INTERVAL_SECONDS) + 1
    return _Both(
        replace(of_live, own=sent + probes, own_failed=failed), replace(of_canary, own=sent, own_failed=failed), note
    )


def _without_refused(live: Requests, canary: Requests) -> tuple[Requests, Requests, str]:
    """Both without what was refused because too many waited, if that is known of both, and what is to be said of it.

    More refused than failed tells that the canary's failures began anew, and its first step's count did not.
    """
    if live.refused is None or canary.refused is None or canary.refused > canary.failed:
        return live, canary, "; those refused because too many waited are among them, how many is unknown"
    if not (live.refused or canary.refused):
        return live, canary, ""
    return (
        replace(live, failed=max(0, live.failed - live.refused)),
        replace(canary, failed=canary.failed - canary.refused),
        f"; without {canary.refused:,} and {live.refused:,} that were refused because too many waited",
    )


def _judge_latency(
    layout: Layout, state: ServerState, canary: Canary, both: _Both, settings: CanarySettings
) -> Judgement:
    """Measure both in turns, again where too many requests wait; a canary that fails a request is looked into."""
    url, journal = state.endpoints.grpc_url, CanaryJournal(layout.canary_journal(canary.domain))
    texts = sample_texts(ReleaseStore(layout.releases(canary.domain)).open(canary.release), VERDICT_PAIRS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        # Before they are sent: no later verdict must take them for people's.
        journal.write(canary.release, "measured", canary.share, requests=VERDICT_PAIRS + WARM_UPS)
        is_late = time.monotonic() > deadline
        try:
            found = compare_latency(
                url, canary.domain, canary.model, texts, settings.latency_ratio, pairs=VERDICT_PAIRS
            )
        except ServerError as error:
            if is_late or not isinstance(error, BusyError):
                failures = 1 if not isinstance(error, BusyError) else VERDICT_PAIRS + WARM_UPS
                journal.write(canary.release, "measured", canary.share, requests=ROUNDS, failures=failures + ROUNDS)
                return _judge_silence(url, canary, texts[0], error.message)
            journal.write(canary.release, "measured", canary.share, failures=VERDICT_PAIRS + WARM_UPS)
        else:
            missed = VERDICT_PAIRS - (len(found.live) if found is not None else -WARM_UPS)
            if missed:
                journal.write(canary.release, "measured", canary.share, failures=missed)
            if found is not None or is_late:
                return judge_latency(found, both.live, both.canary)
        time.sleep(PAUSE_SECONDS)


def _judge_silence(url: str, canary: Canary, text: str, failure: str) -> Judgement:
    """Tell a canary that is broken, which fails all of some requests while the live release fails none beside it."""
    for turn in range(ROUNDS):
        if turn:
            time.sleep(ROUND_SECONDS)
        try:
            probe(url, canary.domain, text, timeout_seconds=ROUND_TIMEOUT_SECONDS)
        except ServerError as error:
            return Judgement("latency", Outcome.WAIT, f"{failure}; nor does the live release: {error.message}")
        try:
            probe(url, canary.model, text, timeout_seconds=ROUND_TIMEOUT_SECONDS)
        except ServerError as error:
            failure = error.message
        else:
            return Judgement("latency", Outcome.WAIT, f"{failure}; it answers again")
    words = f"it failed {ROUNDS} of {ROUNDS} requests sent in turns with the live release, which failed none; {failure}"
    return Judgement("answers", Outcome.DROP, words)


def _live_since(layout: Layout, domain: str) -> datetime.datetime:
    """When the live release went live: what people did before says nothing about it beside the canary."""
    publications = Journal(layout.journal(domain)).publications()
    return publications[-1].moment if publications else datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
