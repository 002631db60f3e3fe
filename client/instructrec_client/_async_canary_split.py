"""The asyncio split: `CanarySplit` with awaited calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from ._async_client import AsyncClient
from ._base import Traceback
from ._canary_split import SHADOWS
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

__all__ = ["AsyncCanarySplit"]


class AsyncCanarySplit:
    """`CanarySplit` for asyncio: the same calls, awaited. Belongs to the event loop of its client."""

    def __init__(
        self, client: AsyncClient, *, share: float | None = None, shadow: bool = False, refresh: float = REFRESH
    ) -> None:
        """Keep the settings; nothing is asked before the first call."""
        self._state = SplitState(client.domain, share, refresh)
        self._live = client
        self._canary = client._canary_client()
        self._shadow = shadow
        self._shadows: set[asyncio.Task[None]] = set()
        self._looked = asyncio.Event()  # set once the first look-up is over

    @property
    def counts(self) -> SplitCounts:
        """What became of the requests so far."""
        return self._state.counts

    @property
    def canary(self) -> CanaryState | None:
        """The canary, as the server said last; None before the first call."""
        return self._state.canary

    async def recommend(
        self,
        instruction: str,
        *,
        user_id: str,
        history: Sequence[str] = (),
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> Recommendations:
        """See `CanarySplit.recommend`."""
        deadline = self._live._deadline(timeout)
        check_text(user_id, "the user_id")
        patience = min(ASKING_SECONDS, ASKING_SHARE * deadline.remaining())
        if self._state.has_to_ask():
            await self._ask(patience)
        elif not self._looked.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._looked.wait(), patience)
        if self._state.is_canarys(user_id):
            try:
                answer = await self._canary.recommend(
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
            if self._shadow and self.canary is not None:
                self._send_shadow(instruction, history, k)
        answer = await self._live.recommend(instruction, history=history, k=k, timeout=deadline.remaining())
        self._state.count(side)
        return answer

    async def close(self) -> None:
        """Close the connection to the canary; shadows on their way are given up."""
        for shadow in self._shadows:
            shadow.cancel()
        await self._canary.close()

    async def __aenter__(self) -> AsyncCanarySplit:
        """Return the split."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: Traceback
    ) -> None:
        """Close the split."""
        await self.close()

    async def _ask(self, seconds: float) -> None:
        try:
            release, parameters = await self._canary._model_parameters(seconds)
            self._state.learn(read_state(release, parameters))
        except GONE:
            self._state.learn(None)
        except InstructRecError:
            pass  # the server did not say: what was known before still holds
        finally:
            self._looked.set()

    def _send_shadow(self, instruction: str, history: Sequence[str], k: int) -> None:
        if len(self._shadows) >= SHADOWS:
            self._state.count("shadow_dropped")
            return
        shadow = asyncio.create_task(self._ask_shadow(instruction, history, k))
        self._shadows.add(shadow)
        shadow.add_done_callback(self._shadows.discard)

    async def _ask_shadow(self, instruction: str, history: Sequence[str], k: int) -> None:
        try:
            await self._canary.recommend(instruction, history=history, k=k)
            self._state.count("shadow")
        except InstructRecError:
            self._state.count("shadow_failed")
