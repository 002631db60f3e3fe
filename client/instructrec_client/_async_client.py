"""The asyncio client: `Client` with awaited calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from tritonclient.grpc import InferInput, InferResult

from ._base import BaseClient, Traceback
from ._errors import ClientMoved, DeadlineExceeded, InstructRecError, ModelNotFound, ServerUnavailable
from ._feedback import FEEDBACK_MODEL, Feedback, check_feedback, decode_feedback, encode_feedback
from ._models import Recommendations
from ._timeout import Deadline, Timeout
from ._transport import AsyncGrpcTransport, AsyncTransport
from ._validation import check_request
from ._wire import decode, encode

Answer = TypeVar("Answer")

__all__ = ["AsyncClient"]


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same calls, awaited. Belongs to one event loop; its tasks may share it.

    Example:
        async with AsyncClient("127.0.0.1:8001", domain="ecommerce") as client:
            answer = await client.recommend("I want to buy a blue shirt", k=5)
    """

    _transport: AsyncTransport | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def recommend(
        self,
        instruction: str,
        *,
        history: Sequence[str] = (),
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> Recommendations:
        """See `Client.recommend`."""
        return (await self.recommend_batch([instruction], histories=[history], k=k, timeout=timeout))[0]

    async def recommend_batch(
        self,
        instructions: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> list[Recommendations]:
        """See `Client.recommend_batch`."""
        deadline = self._deadline(timeout)
        check_request(instructions, histories, k)
        transport = self._connected()
        answers: list[Recommendations] = []
        for request in encode(instructions, histories, k):
            answers += await self._send(
                transport, self.domain, request.inputs, partial(decode, request=request), deadline
            )
        return answers

    async def feedback(self, event: Feedback, *, timeout: Timeout | float | None = None) -> bool:
        """See `Client.feedback`."""
        return (await self.feedback_batch([event], timeout=timeout))[0]

    async def feedback_batch(self, events: Sequence[Feedback], *, timeout: Timeout | float | None = None) -> list[bool]:
        """See `Client.feedback_batch`."""
        deadline = self._deadline(timeout)
        check_feedback(events)
        transport = self._connected()
        stored: list[bool] = []
        for request in encode_feedback(self.domain, events):
            stored += await self._send(
                transport, FEEDBACK_MODEL, request.inputs, partial(decode_feedback, request=request), deadline
            )
        return stored

    async def ready(self, *, timeout: Timeout | float | None = None) -> bool:
        """See `Client.ready`."""
        remaining = self._deadline(timeout).remaining()
        try:
            return await self._connected().model_ready(self.domain, remaining)
        except (DeadlineExceeded, ModelNotFound, ServerUnavailable):
            return False

    async def close(self) -> None:
        """See `Client.close`."""
        if self._is_inherited:
            self._closed = True
            return
        with self._lock:
            self._closed = True
            transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> AsyncClient:
        """Return the client."""
        self._require_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: Traceback
    ) -> None:
        """Close the client."""
        await self.close()

    async def _model_parameters(self, seconds: float) -> tuple[str, dict[str, str]]:
        return await self._connected().model_parameters(self.domain, seconds)

    def _connect(self) -> AsyncTransport:
        return AsyncGrpcTransport(self._endpoint)

    def _connected(self) -> AsyncTransport:
        self._require_own_process()
        with self._lock:
            self._require_open()
            self._loop = self._loop or asyncio.get_running_loop()
            if self._loop is not asyncio.get_running_loop():
                raise ClientMoved("the client was used in another event loop: make an AsyncClient in each")
            if self._transport is None:
                self._transport = self._connect()
            return self._transport

    async def _send(
        self,
        transport: AsyncTransport,
        model: str,
        inputs: list[InferInput],
        decode_result: Callable[[InferResult], list[Answer]],
        deadline: Deadline,
    ) -> list[Answer]:
        attempts = self._attempts(deadline)
        while True:
            remaining = attempts.remaining()
            try:
                with self._sending(model):
                    return decode_result(await transport.infer(model, inputs, remaining))
            except InstructRecError as error:
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)
