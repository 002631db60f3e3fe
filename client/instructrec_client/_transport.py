"""The one place that talks gRPC: channel options, TLS, and Triton's statuses turned into this package's errors."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException

from ._errors import (
    ClientClosed,
    DeadlineExceeded,
    InstructRecError,
    InvalidRequest,
    ModelNotFound,
    ModelUnloaded,
    QueueFull,
    ServerError,
    ServerUnavailable,
)
from ._timeout import MORE_TIME
from ._tls import Tls

__all__ = ["AsyncGrpcTransport", "AsyncTransport", "ChannelArgs", "Endpoint", "GrpcTransport", "Transport"]

Result = TypeVar("Result")

ChannelArgs = Sequence[tuple[str, str | int]]

MAX_MESSAGE_BYTES = 64 * 2**20
"""Far above the largest answer (32 rows of 100 items), and low enough to stop a runaway one."""

CHANNEL_ARGS: dict[str, str | int] = {
    # tritonclient drops its own defaults, message sizes among them, as soon as channel_args are given: so all are here.
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    # Finds a dead connection: gRPC pings after 20 s of silence if a call is under way then, and while answers come. It
    # waits for a reply as long as the longer of the two timeouts says; the second is a minute by default. No pings
    # without calls, which a server may punish by closing.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 0,
    # gRPC waits 1 s, then up to 120 s, between attempts to connect and fails every call meanwhile. A server that
    # restarts is found again sooner with these.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
}

UNLOADED = "has no available versions"
"""In what Triton says, with NOT_FOUND, of a model that it knows and has unloaded, as `make stop` has it do first."""
STORE_FAILS = "feedback cannot be stored"
"""What the model that takes feedback says, with UNAVAILABLE, when its store fails: the server itself is well."""
CLOSED_IN_USE = "the client was closed while it was in use"


@dataclass(frozen=True)
class Endpoint:
    """Where and how to connect."""

    url: str
    channel_args: ChannelArgs | None = None
    tls: Tls | bool | None = None
    pem: Mapping[str, bytes | None] | None = field(default=None, repr=False)
    """What `Tls.read` returned, if `tls` is a `Tls`."""

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of tritonclient's clients."""
        proxy = {"grpc.enable_http_proxy": 0} if _is_loopback(self.url) else {}
        merged = {**CHANNEL_ARGS, **proxy, **dict(self.channel_args or ())}
        options: dict[str, Any] = {"url": self.url, "channel_args": list(merged.items())}
        if self.pem is not None:
            options["creds"] = grpc.ssl_channel_credentials(**self.pem)
        elif self.tls:
            options["ssl"] = True
        return options


def _is_loopback(url: str) -> bool:
    """Whether all of a URL's addresses are of this machine, which a proxy in the environment cannot reach."""
    addresses = re.sub(r"^(ipv4:|ipv6:|dns:(//[^/]*/)?)", "", url).split(",")
    hosts = [re.sub(r":\d+$", "", address).strip("[]") for address in addresses]
    return all(re.fullmatch(r"localhost|127(\.\d+){3}|::1", host) for host in hosts)


class Transport(Protocol):
    """What the client needs of a connection."""

    def infer(self, model: str, inputs: list[InferInput], timeout: float) -> InferResult:
        """Send one request and return its answer.

        Args:
            model: The model's name.
            inputs: The input tensors.
            timeout: Seconds, above zero.

        Raises:
            InstructRecError: There is no answer.
        """

    def model_ready(self, model: str, timeout: float) -> bool:
        """Return whether the server says that the model is ready.

        Raises:
            InstructRecError: The server does not say.
        """

    def model_parameters(self, model: str, timeout: float) -> tuple[str, dict[str, str]]:
        """Return a model's version and its config's parameters.

        Raises:
            InstructRecError: The server does not say, or not have the model.
        """

    def close(self) -> None:
        """Close the connection."""


class AsyncTransport(Protocol):
    """`Transport` with awaited calls."""

    async def infer(self, model: str, inputs: list[InferInput], timeout: float) -> InferResult:
        """See `Transport.infer`."""

    async def model_ready(self, model: str, timeout: float) -> bool:
        """See `Transport.model_ready`."""

    async def model_parameters(self, model: str, timeout: float) -> tuple[str, dict[str, str]]:
        """See `Transport.model_parameters`."""

    async def close(self) -> None:
        """See `Transport.close`."""


class GrpcTransport:
    """A `Transport` over tritonclient."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Make the channel; gRPC connects with the first call."""
        self._url = endpoint.url
        self._client = tritonclient.grpc.InferenceServerClient(**endpoint.options())
        self._closed = False

    def infer(self, model: str, inputs: list[InferInput], timeout: float) -> InferResult:
        """See `Transport.infer`."""
        with self._typed_errors(model):
            return self._client.infer(model, inputs, client_timeout=timeout, timeout=_microseconds(timeout))

    def model_ready(self, model: str, timeout: float) -> bool:
        """See `Transport.model_ready`."""
        with self._typed_errors(model):
            return bool(self._client.is_model_ready(model, client_timeout=timeout))

    def model_parameters(self, model: str, timeout: float) -> tuple[str, dict[str, str]]:
        """See `Transport.model_parameters`."""
        with self._typed_errors(model):
            return _parameters(self._client.get_model_config(model, client_timeout=timeout))

    def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        self._client.close()

    def _typed_errors(self, model: str) -> AbstractContextManager[None]:
        return _typed_errors(self._url, model, lambda: self._closed)


class AsyncGrpcTransport:
    """An `AsyncTransport` over tritonclient; belongs to the event loop that made it."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Make the channel; gRPC connects with the first call."""
        self._url = endpoint.url
        self._client = tritonclient.grpc.aio.InferenceServerClient(**endpoint.options())
        self._closed = False

    async def infer(self, model: str, inputs: list[InferInput], timeout: float) -> InferResult:
        """See `Transport.infer`."""
        return await self._call(
            model, self._client.infer(model, inputs, client_timeout=timeout, timeout=_microseconds(timeout))
        )

    async def model_ready(self, model: str, timeout: float) -> bool:
        """See `Transport.model_ready`."""
        return bool(await self._call(model, self._client.is_model_ready(model, client_timeout=timeout)))

    async def model_parameters(self, model: str, timeout: float) -> tuple[str, dict[str, str]]:
        """See `Transport.model_parameters`."""
        return _parameters(await self._call(model, self._client.get_model_config(model, client_timeout=timeout)))

    async def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        await self._client.close()

    async def _call(self, model: str, call: Awaitable[Result]) -> Result:
        with _typed_errors(self._url, model, lambda: self._closed):
            try:
                return await call
            except asyncio.CancelledError:
                if self._closed and not _task_is_cancelled():  # gRPC cancels the calls of a channel that closes
                    raise ClientClosed(CLOSED_IN_USE) from None
                raise


def _task_is_cancelled() -> bool:
    """Return whether somebody cancelled the task that runs; Python 3.10 does not tell, and is taken to say no."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0


@contextmanager
def _typed_errors(url: str, model: str, closed: Callable[[], bool]) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        if closed() and _status(error) == "CANCELLED":  # on an open client, it was the server or a proxy
            raise ClientClosed(CLOSED_IN_USE) from error
        raise _error_of(error, url, model) from error
    except (ValueError, grpc.aio.UsageError) as error:
        if "closed" not in str(error):
            raise
        raise ClientClosed(CLOSED_IN_USE) from error


def _parameters(response: Any) -> tuple[str, dict[str, str]]:
    """Return the version that a model's config pins, "" if none, and its parameters."""
    versions = response.config.version_policy.specific.versions
    parameters = {name: value.string_value for name, value in response.config.parameters.items()}
    return str(versions[0]) if versions else "", parameters


def _microseconds(seconds: float) -> int:
    # 0 would mean "no limit" to Triton.
    return max(1, int(seconds * 1e6))


def _status(error: InferenceServerException) -> str:
    return str(error.status()).removeprefix("StatusCode.")


def _error_of(error: InferenceServerException, url: str, model: str) -> InstructRecError:  # noqa: PLR0911 - one a status
    """Return the error of this package that says what a gRPC status means here."""
    status = _status(error)
    details = error.message() or "no details"
    if status == "INVALID_ARGUMENT":
        return InvalidRequest(f"the server refused the request: {details}")
    if status == "RESOURCE_EXHAUSTED" and "Sent message larger" in details:
        return InvalidRequest(f"the request is too large to send ({details}): shorten its text or history")
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{url} did not answer in time: {MORE_TIME}")
    if status == "UNAVAILABLE" and "Exceeds maximum queue size" in details:
        return QueueFull(f"the queue of {url} is full: send less at once, or add servers")
    if status == "UNAVAILABLE" and STORE_FAILS in details:
        return ServerUnavailable(f"{url} answers that {details}: keep the events, and send the same ones again later")
    if status == "UNAVAILABLE" and "handshake" in details:
        return ServerUnavailable(
            f"{url} and this client do not agree on TLS ({details}): check that the server speaks TLS, that tls=… "
            "trusts its certificate, and that it trusts this client's"
        )
    if status in {"UNAVAILABLE", "CANCELLED"}:  # a server that ends cancels what it has not answered
        return ServerUnavailable(f"{url} is unavailable ({details}): check the address and that the server is running")
    if status == "NOT_FOUND" and UNLOADED in details:
        return ModelUnloaded(f"{url} has unloaded {model!r} ({details}): it is going away, or deploy the domain there")
    if status == "NOT_FOUND":
        return ModelNotFound(f"{url} does not serve {model!r} ({details}): check the domain, or deploy it there")
    return ServerError(f"{url} failed with {status} ({details}): see the server's log")
