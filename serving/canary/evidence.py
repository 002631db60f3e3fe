"""What is known of a canary and of the live release beside it: feedback by person, and the server's own counts."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.utils import InferenceServerException

from ..channel import connect
from ..embedded import Endpoints
from ..errors import ServerError
from ..steps.limits import REFUSED_METRIC

if TYPE_CHECKING:
    from feedback.reader import StoredEvent


@dataclass
class People:
    """What the people of one release were shown and did.

    Attributes:
        shown: impressions by person.
        done: successes by person.
    """

    shown: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def columns(self) -> tuple[list[int], list[int]]:
        """Successes and impressions of each person who was shown something, person by person."""
        people = sorted(person for person, count in self.shown.items() if count > 0)
        return [self.done[person] for person in people], [self.shown[person] for person in people]


@dataclass(frozen=True)
class FeedbackOfBoth:
    """Feedback of two releases since a moment.

    Attributes:
        live: of those whom the live release answered, or answered more often than the canary.
        canary: of all others.
        of_both: how many met both.
        of_nobody: events without a person, which say nothing here.
        not_shown: successes on what the person was not shown since then, which are left out.
    """

    live: People
    canary: People
    of_both: int
    of_nobody: int
    not_shown: int


@dataclass(frozen=True)
class Requests:
    """What the server counted of one ensemble.

    Attributes:
        answered: requests.
        failed: requests, those included that broke the contract.
        mean_ms: time of an answer; 0 without one.
        own: so many of those answered, at most, were probes and measurements of this project: nobody's requests.
        own_failed: so many of those that failed, at most, were.
        first_step: the model and version that its requests meet first; another ensemble may begin with the same.
        refused: requests that this step refused because too many waited, each of which failed; None: nobody knows.
    """

    answered: int
    failed: int
    mean_ms: float
    own: int = 0
    own_failed: int = 0
    first_step: str = ""
    refused: int | None = None

    def since(self, before: Requests) -> Requests | None:
        """What was counted since an earlier count; None if it shrank, so that it began anew meanwhile."""
        answered, failed = self.answered - before.answered, self.failed - before.failed
        milliseconds = self.answered * self.mean_ms - before.answered * before.mean_ms
        if answered < 0 or failed < 0 or milliseconds < 0:
            return None
        mean = milliseconds / answered if answered else 0.0
        return Requests(
            answered, failed, mean, first_step=self.first_step, refused=refused_since(self.refused, before.refused)
        )

    def begins_with_own_step(self, domain: str) -> bool:
        """Whether its first step is `<domain>_<step>`; one that domains share ends in hexadecimal digits."""
        return re.fullmatch(rf"{re.escape(domain)}_[a-z]+ \d+", self.first_step) is not None


def read_feedback(var: Path, domain: str, *, live: int, canary: int, event: str, since: float) -> FeedbackOfBoth | None:
    """Sort the feedback of a domain by the release that had answered.

    Args:
        var: below which the store, or its URL, lies.
        domain: whose.
        live: the live release's number.
        canary: the canary's.
        event: the kind that counts as a success.
        since: only what came in later, in seconds since 1970-01-01 UTC.

    Returns:
        The feedback; None if there is no store yet.

    Raises:
        ServerError: the store cannot be read.
    """
    # Here, for no other command of this room should wait for SQLAlchemy.
    from feedback.errors import FeedbackError  # noqa: PLC0415
    from feedback.location import Location  # noqa: PLC0415
    from feedback.reader import FeedbackReader  # noqa: PLC0415

    try:
        location = Location.below(var)
        url = location.url()
        if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
            return None
        with FeedbackReader(location) as reader:
            return sort_events(reader.events(domain), live=live, canary=canary, event=event, since=since)
    except FeedbackError as error:
        raise ServerError(str(error)) from None


def sort_events(events: Iterable[StoredEvent], *, live: int, canary: int, event: str, since: float) -> FeedbackOfBoth:
    """As `read_feedback`, of events.

    A person is of the release that made most of their impressions, and all that they did is counted there: to leave
    out who met both would leave out those who come most often, on one side more than on the other. A success counts if
    the person was shown the item, or anything in that request, since then; who had shown it does not matter. Else a
    success that comes late, of an impression before the canary came up, would count for the live release alone.
    """
    arms = {str(live): 0, str(canary): 1}
    shown: dict[str, list[int]] = {}
    seen: set[tuple[str, str, str]] = set()
    successes: list[tuple[str, set[tuple[str, str, str]]]] = []
    of_nobody = 0
    for one in events:
        is_impression = one.event == "impression" and one.release in arms
        if one.received < since or not (is_impression or one.event == event):
            continue
        if one.user_hash is None:
            of_nobody += 1
            continue
        keys = {(one.user_hash, "item", one.item_id)}
        if one.request_id:
            keys.add((one.user_hash, "request", one.request_id))
        if is_impression:
            shown.setdefault(one.user_hash, [0, 0])[arms[one.release]] += 1
            seen |= keys
        else:
            successes.append((one.user_hash, keys))
    people = People(), People()
    side = {person: people[by_canary >= by_live] for person, (by_live, by_canary) in shown.items()}
    for person, impressions in shown.items():
        side[person].shown[person] = sum(impressions)
    not_shown = 0
    for person, keys in successes:
        if keys & seen:
            side[person].done[person] += 1
        else:
            not_shown += 1
    of_both = sum(min(impressions) > 0 for impressions in shown.values())
    return FeedbackOfBoth(*people, of_both=of_both, of_nobody=of_nobody, not_shown=not_shown)


def count_requests(endpoints: Endpoints, model: str, release: int) -> Requests:
    """What the server counted of an ensemble since it was loaded last, and of its first step.

    Raises:
        ServerError: the server does not answer, or does not have it.
    """
    url = endpoints.grpc_url
    try:
        with connect(url) as client:
            config = client.get_model_config(model, str(release), client_timeout=10).config
            first = config.ensemble_scheduling.step[0]
            # Before the failures, so that none is refused that has not failed.
            refused = count_refused(endpoints, first.model_name, first.model_version)
            found = client.get_inference_statistics(model, str(release), client_timeout=10).model_stats[0]
    except InferenceServerException as error:
        raise ServerError(f"{model} at {url} is not served: {error.message()}") from None
    success, fail = found.inference_stats.success, found.inference_stats.fail
    mean = success.ns / success.count / 1e6 if success.count else 0.0
    first_step = f"{first.model_name} {first.model_version}"
    return Requests(int(success.count), int(fail.count), mean, first_step=first_step, refused=refused)


def count_refused(endpoints: Endpoints, model: str, version: int) -> int | None:
    """How many requests a first step refused because too many waited, since it was loaded.

    None where the metrics cannot be read, or do not say: a step exported before there was this count has none.
    """
    line = re.compile(rf'^{REFUSED_METRIC}\{{model="{re.escape(model)}",version="{version}"\}} (\S+)', re.MULTILINE)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the environment's proxies are not for this
    try:
        with direct.open(f"http://{endpoints.metrics_address}/metrics", timeout=5) as page:
            found = line.search(page.read().decode())
            return int(float(found[1])) if found else None
    except (OSError, HTTPException, ValueError):
        return None


def refused_since(now: int | None, before: int | None) -> int | None:
    """What was refused since an earlier count; None if one of the two is unknown or it began anew meanwhile."""
    return now - before if now is not None and before is not None and now >= before else None
