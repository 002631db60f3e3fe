"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from tritonclient.grpc import InferInput, InferResult

from ._base import BaseClient, Traceback
from ._errors import DeadlineExceeded, InstructRecError, ModelNotFound, ServerUnavailable
from ._feedback import FEEDBACK_MODEL, Feedback, check_feedback, decode_feedback, encode_feedback
from ._models import Recommendations
from ._timeout import Deadline, Timeout
from ._transport import GrpcTransport, Transport
from ._validation import check_request
from ._wire import decode, encode

Answer = TypeVar("Answer")

__all__ = ["Client"]


class Client(BaseClient):
    """Asks one domain of an InstructRec server. Threads may share one client.

    It connects with the first call, so it may be made before a process forks, but not used: a child in which its
    parent's calls had begun makes one of its own. The clients of one address and the same options share one connection,
    to one server, unless `channel_args` say otherwise (`grpc.use_local_subchannel_pool`, `grpc.lb_policy_name`). Logs
    nothing.

    Example:
        with Client("127.0.0.1:8001", domain="ecommerce") as client:
            answer = client.recommend("I want to buy a blue shirt", k=5)
    """

    _transport: Transport | None = None

    def recommend(
        self,
        instruction: str,
        *,
        history: Sequence[str] = (),
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> Recommendations:
        """Return the best `k` items for an instruction.

        Args:
            instruction: What the person wants, in their own words, at most 16,384 bytes of UTF-8. A server cuts what
                exceeds its model's length in tokens.
            history: Ids of items the person chose before, newest first, at most 1,000; more are refused, not cut.
                Unknown ids are ignored.
            k: How many items, 1 to 100.
            timeout: The deadline of this call; the client's own where None.

        Raises:
            InvalidRequest: An argument breaks the contract.
            DeadlineExceeded: There was no answer in time.
            ServerUnavailable: The server is not there or cannot serve now, also after the retries.
            ModelNotFound: The server does not have the domain.
            ServerError: The server failed.
            ProtocolError: The answer is not what the contract says.
            ClientClosed: The client is closed.
            ClientMoved: The client was used in another process, which forked then.
        """
        return self.recommend_batch([instruction], histories=[history], k=k, timeout=timeout)[0]

    def recommend_batch(
        self,
        instructions: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        k: int = 10,
        timeout: Timeout | float | None = None,
    ) -> list[Recommendations]:
        """Return one answer for each instruction, in their order.

        Up to 32 instructions travel in one request; more are split into several, sent one after another.

        Args:
            instructions: As for `recommend`.
            histories: One history for each instruction, or None.
            k: How many items for each instruction.
            timeout: The deadline of the whole call, all its requests together.

        Raises:
            InstructRecError: As for `recommend`. The call returns all answers or none.
        """
        deadline = self._deadline(timeout)
        check_request(instructions, histories, k)
        transport = self._connected()
        answers: list[Recommendations] = []
        for request in encode(instructions, histories, k):
            answers += self._send(transport, self.domain, request.inputs, partial(decode, request=request), deadline)
        return answers

    def feedback(self, event: Feedback, *, timeout: Timeout | float | None = None) -> bool:
        """Tell the server what a person did with an item, and return once that is durable.

        Retries are safe: an event whose id is known is not stored again. After an error it is not known whether the
        event was stored; sending the same `Feedback` once more is as safe, so keep it until a call returns.

        Args:
            event: What happened.
            timeout: The deadline of this call; the client's own where None.

        Returns:
            Whether it was new; False where its id was known already.

        Raises:
            InstructRecError: As for `recommend`. `ServerUnavailable` too where the server cannot store events now.
        """
        return self.feedback_batch([event], timeout=timeout)[0]

    def feedback_batch(self, events: Sequence[Feedback], *, timeout: Timeout | float | None = None) -> list[bool]:
        """Send many events and return, once all are durable, which of them were new.

        Up to 256 events travel in one request, which is stored as a whole or not at all; more are split into several,
        sent one after another.

        Args:
            events: What happened.
            timeout: The deadline of the whole call, all its requests together.

        Raises:
            InstructRecError: As for `feedback`. Some requests may have been stored then; sending all again is safe.
        """
        deadline = self._deadline(timeout)
        check_feedback(events)
        transport = self._connected()
        stored: list[bool] = []
        for request in encode_feedback(self.domain, events):
            stored += self._send(
                transport, FEEDBACK_MODEL, request.inputs, partial(decode_feedback, request=request), deadline
            )
        return stored

    def ready(self, *, timeout: Timeout | float | None = None) -> bool:
        """Return whether the server says that the domain's model is ready; False as well when no server answers.

        Only an answer to `recommend` proves that it works: a server can call itself ready with a broken step.

        Raises:
            ServerError: What answers is no inference server.
            ClientClosed: The client is closed.
        """
        remaining = self._deadline(timeout).remaining()
        try:
            return self._connected().model_ready(self.domain, remaining)
        except (DeadlineExceeded, ModelNotFound, ServerUnavailable):
            return False

    def close(self) -> None:
        """Close the connection. Calls that are under way end with `ClientClosed`."""
        if self._is_inherited:
            self._closed = True
            return
        with self._lock:
            self._closed = True
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def __enter__(self) -> Client:
        """Return the client."""
        self._require_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Traceback) -> None:
        """Close the client."""
        self.close()

    def _model_parameters(self, seconds: float) -> tuple[str, dict[str, str]]:
        return self._connected().model_parameters(self.domain, seconds)

    def _connect(self) -> Transport:
        return GrpcTransport(self._endpoint)

    def _connected(self) -> Transport:
        self._require_own_process()
        with self._lock:
            self._require_open()
            if self._transport is None:
                self._transport = self._connect()
            return self._transport

    def _send(
        self,
        transport: Transport,
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
                    return decode_result(transport.infer(model, inputs, remaining))
            except InstructRecError as error:
                pause = attempts.pause_after(error)
            time.sleep(pause)
