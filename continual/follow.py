"""The loop, resident: waits for feedback, tunes, makes each accepted release live, and outlives what goes wrong."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

import click

from export.followed import Followed
from feedback.errors import FeedbackError
from feedback.location import Location
from feedback.reader import FeedbackReader
from serving.deploy import deploy
from serving.errors import GateError, ServerError
from serving.gates.gates import Gates
from serving.gates.settings import GateSettings
from serving.releases import Release
from serving.server import MENDING_SECONDS, Server

from . import exporting  # noqa: F401 - loads now what a turn will need: seconds that its feedback need not wait for
from .errors import RefusedError
from .tuner import Tuner

logger = logging.getLogger("continual")
LOOK_SECONDS = 1.0
REST_SECONDS = 10.0
"""After a turn that failed: what is in its way may be gone then. Twice as long after each further one, up to"""
LONGEST_REST_SECONDS = 600.0


@dataclass
class Follower:
    """Tunes when enough is new or long enough has passed.

    Attributes:
        tuner: what tunes.
        every: seconds between two turns; None: only when enough is new.
        events: new events that start a turn; None: only when the time has come.
        gates: what a release has to pass before it answers.
    """

    tuner: Tuner
    every: float | None
    events: int | None
    gates: GateSettings
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _seen: int = 0
    _failed: int = 0
    _unreadable: str | None = None
    _not_good_enough: set[int] = field(default_factory=set, repr=False)

    def run(self) -> None:
        """Follow until SIGINT or SIGTERM; a turn that has begun is brought to its end.

        Raises:
            ServerError: no server runs.
        """
        Server(self.tuner.layout).require_state()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked_to_stop)
        self.tuner.prepare()
        self._seen = self.tuner.read_until
        conditions = [f"every {self.every:g} s"] if self.every else []
        conditions += [f"after {self.events} events"] if self.events else []
        logger.info("following the feedback of %s: %s", self.tuner.config.domain, " or ".join(conditions))
        last = float("-inf")
        while not self._stop.is_set():
            if self._is_due(time.monotonic() - last):
                last = time.monotonic()
                self._failed = 0 if self._turn() else self._failed + 1
            self._stop.wait(self._rest() if self._failed else LOOK_SECONDS)
        logger.info("stopped")

    def _rest(self) -> float:
        return min(LONGEST_REST_SECONDS, REST_SECONDS * 2.0 ** min(self._failed - 1, 10))  # no float holds 2 ** 1024

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _is_due(self, waited: float) -> bool:
        if self._failed or (self.every is not None and waited >= self.every):
            return True
        return self.events is not None and self._new_events(self.events) >= self.events

    def _new_events(self, enough: int) -> int:
        """How many events came since the last turn, counted no further than `enough`."""
        found, why = 0, None
        try:
            with FeedbackReader(Location.below(self.tuner.layout.var)) as reader:
                if reader.watermark() < self._seen:
                    return enough  # another store: the turn says so
                new = reader.events(self.tuner.config.domain, after=self._seen)
                found = sum(1 for _ in itertools.islice(new, enough))
        except FeedbackError as error:  # there is none yet, or it cannot be read now
            why = str(error)
        if why and why != self._unreadable:
            logger.warning("%s", why)
        self._unreadable = why
        return found

    def _turn(self) -> bool:
        """Tune once, and make what comes of it live; False if something was in the way that may pass."""
        began = time.monotonic()
        try:
            followed = Followed.now(self.tuner.layout, self.tuner.config.domain)
            turn = self.tuner.turn()
            logger.info("%s (%.1f s)", turn.line, time.monotonic() - began)
            release = turn.release or turn.waiting
            if release is not None and self._make_live(release, followed):
                self.tuner.prepare()  # now, so that the next feedback need not wait for it
        except RefusedError as error:
            logger.warning("%s", error.message)
        except click.ClickException as error:  # every room's errors: the next turn may fare better
            logger.error("%s", error.message)
            return False
        except OSError as error:  # a full disk, say, anywhere in a turn
            logger.error("the turn failed: %s", error)
            return False
        finally:
            self._seen = self.tuner.read_until
        return True

    def _make_live(self, release: Release, followed: Followed) -> bool:
        """Publish a release in place of the one it was derived from; False if it does not pass a gate."""
        if release.number in self._not_good_enough:
            return False
        state = Server(self.tuner.layout).state()
        if state is None:
            raise ServerError(f"no server runs: release {release.number} waits for one; run `make start`")

        try:
            deployment = deploy(
                self.tuner.layout,
                release,
                state.endpoints,
                gates=Gates(self.gates),
                verb="follow",
                check=followed.check,  # a newer catalogue may have gone live meanwhile, or a rollback
                patience_seconds=MENDING_SECONDS,  # nobody is there to try again
            )
        except GateError as error:
            logger.warning("%s", error.message)
            self._not_good_enough.add(release.number)
            return False
        for warning in deployment.warnings:
            logger.warning("%s", warning)
        seconds = "" if deployment.switch_seconds is None else f", switched in {deployment.switch_seconds:.2f} s"
        logger.info("release %s answers%s", deployment.release, seconds)
        return True
