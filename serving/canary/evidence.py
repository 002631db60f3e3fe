"""What is known of a canary and of the live release beside it: feedback by person, and the server's own counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ..errors import ServerError

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
        live: of those whom the live release answered.
        canary: of those whom the canary answered.
        of_both: how many met both, and are left out: what they did is no one release's doing.
        of_nobody: events without a person, which say nothing here.
    """

    live: People
    canary: People
    of_both: int
    of_nobody: int


@dataclass(frozen=True)
class Requests:
    """What the server counted of one ensemble since it was loaded last.

    Attributes:
        answered: requests.
        failed: requests, those included that broke the contract.
        mean_ms: time of an answer; 0 without one.
    """

    answered: int
    failed: int
    mean_ms: float


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
    """As `read_feedback`, of events."""
    arms = {str(live): People(), str(canary): People()}
    of_nobody = 0
    for one in events:
        if one.received < since or one.release not in arms or one.event not in {"impression", event}:
            continue
        if one.user_hash is None:
            of_nobody += 1
            continue
        arm = arms[one.release]
        (arm.shown if one.event == "impression" else arm.done)[one.user_hash] += 1
    before, after = arms[str(live)], arms[str(canary)]
    both = set(before.shown) & set(after.shown)
    for person in both:
        del before.shown[person], after.shown[person]
    return FeedbackOfBoth(before, after, len(both), of_nobody)


def count_requests(url: str, model: str, release: int) -> Requests:
    """What the server counted of an ensemble.

    Raises:
        ServerError: the server does not answer, or does not have it.
    """
    try:
        with grpc.InferenceServerClient(url) as client:
            found = client.get_inference_statistics(model, str(release), client_timeout=10).model_stats[0]
    except InferenceServerException as error:
        raise ServerError(f"{model} at {url} is not served: {error.message()}") from None
    success, fail = found.inference_stats.success, found.inference_stats.fail
    mean = success.ns / success.count / 1e6 if success.count else 0.0
    return Requests(int(success.count), int(fail.count), mean)
