"""The blocking split between the live release and its canary."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ._base import Traceback
from ._client import Client
from ._errors import InstructRecError
from ._models import Recommendations
from ._split import (
    ASKING_SECONDS,
    ASKING_SHARE,
    FALLS_BACK,
    GONE,
    PATIENCE,
    REFRESH,
    CanaryState,
    SplitCounts,
    SplitState,
    read_state,
)
from ._timeout import Timeout
from ._validation import check_text

__all__ = ["CanarySplit"]

SHADOWS = 4
"""So many may be on their way at once."""


class CanarySplit:
    """Has some of the people answered by the canary, if there is one, and all others by the live release.

    Threads may share it. It asks the server every `refresh` seconds whether there is a canary and for which share of
    the people; a person stays on one side as long as share and release stay. Calls wait for the first such look-up,
    for a fifth of their time at most. Where the server does not say, what it said before holds, and without that the
    live release answers. Where the canary does not answer, the live release does, within the same deadline.

    Example:
        with Client("127.0.0.1:8001", domain="ecommerce") as client, CanarySplit(client) as split:
            answer = split.recommend("I want to buy a blue shirt", user_id="u-17", k=5)
            client.feedback(Feedback("click", answer[0].item_id, user_id="u-17", release=answer.release))

    Args:
        client: Asks the live release; it stays the caller's to close.
        share: Instead of the share that the server publishes; None takes the server's.
        shadow: Send the requests that the live release answers to the canary as well, and throw its answer away.
        refresh: Seconds until the server is asked anew.

    Raises:
        ValueError: An argument makes no sense.
    """

    def __init__(
        self, client: Client, *, share: float | None = None, shadow: bool = False, refresh: float = REFRESH
    ) -> None:
        """Keep the settings; nothing is asked before the first call."""
        self._state = SplitState(client.domain, share, refresh)
        self._live = client
        self._canary = client._canary_client()
        self._pool = ThreadPoolExecutor(SHADOWS, "shadow") if shadow else None
        self._places = threading.Semaphore(SHADOWS)
        self._looked = threading.Event()  # set once the first look-up is over

    @property
    def counts(self) -> SplitCounts:
        """What became of the requests so far."""
        return self._state.counts

    @property
    def canary(self) -> CanaryState | None:
        """The canary, as the server said last; None before the first call."""
        return self._state.canary

    def recommend(
        self,
        instruction: str,
        *,
        user_id: str,
        history: Sequence[str] = (),
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> Recommendations:
        """Return the best `k` items for an instruction, from the release whose turn the person is.

        Args:
            instruction: As for `Client.recommend`.
            user_id: The person; never sent. Nobody in particular ("") is answered by the live release.
            history: As for `Client.recommend`.
            k: Likewise.
            timeout: The deadline of this call, of canary and live release together.

        Raises:
            InstructRecError: As for `Client.recommend`.
        """
        self._live._require_own_process()
        deadline = self._live._deadline(timeout)
        check_text(user_id, "the user_id")
        patience = min(ASKING_SECONDS, ASKING_SHARE * deadline.remaining())
        if self._state.has_to_ask():
            self._ask(patience)
        else:
            self._looked.wait(patience)
        if self._state.is_canarys(user_id):
            try:
                answer = self._canary.recommend(
                    instruction, history=history, k=k, timeout=PATIENCE * deadline.remaining()
                )
            except FALLS_BACK as error:
                self._state.canary_failed(error)
                side = "fallback"
            else:
                self._state.count("canary")
                return answer
        else:
            side = "live"
            if self._pool is not None and self.canary is not None:
                self._send_shadow(self._pool, instruction, history, k)
        answer = self._live.recommend(instruction, history=history, k=k, timeout=deadline.remaining())
        self._state.count(side)
        return answer

    def close(self) -> None:
        """Close the connection to the canary; shadows that wait to be sent are not."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._canary.close()

    def __enter__(self) -> CanarySplit:
        """Return the split."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Traceback) -> None:
        """Close the split."""
        self.close()

    def _ask(self, seconds: float) -> None:
        try:
            release, parameters = self._canary._model_parameters(seconds)
            self._state.learn(read_state(release, parameters))
        except GONE:
            self._state.learn(None)
        except InstructRecError:
            pass  # the server did not say: what was known before still holds
        finally:
            self._looked.set()

    def _send_shadow(self, pool: ThreadPoolExecutor, instruction: str, history: Sequence[str], k: int) -> None:
        if not self._places.acquire(blocking=False):
            self._state.count("shadow_dropped")
            return

        def send() -> None:
            try:
                self._canary.recommend(instruction, history=history, k=k)
                self._state.count("shadow")
            except InstructRecError:
                self._state.count("shadow_failed")
            finally:
                self._places.release()

        try:
            pool.submit(send)
        except RuntimeError:  # another thread closes the split: that costs the shadow, not the answer
            self._places.release()
            self._state.count("shadow_dropped")
