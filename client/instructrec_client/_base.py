"""What both clients are made of, without their input and output."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TypeVar

from ._errors import ClientClosed, ClientMoved
from ._retry import Attempts
from ._throttle import Throttle
from ._timeout import Deadline, Timeout
from ._tls import Tls
from ._transport import ChannelArgs, Endpoint

__all__ = ["BaseClient", "Traceback"]

Traceback = TracebackType | None
Self = TypeVar("Self", bound="BaseClient")

CANARY_SUFFIX = "_canary"
"""Of the name under which a server has the canary of a domain."""


class BaseClient:
    """The settings of a client, and the decisions that need no connection."""

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        domain: str = "ecommerce",
        timeout: Timeout | float = Timeout(),  # noqa: B008 - frozen
        retries: int = 2,
        channel_args: ChannelArgs | None = None,
        tls: Tls | bool | None = None,
    ) -> None:
        """Keep the settings; nothing is connected before the first call.

        Args:
            url: The server's gRPC endpoint: `host:port` without `http://`, or gRPC's `dns:///host:port`.
            domain: The domain to ask, which is the name of its model on the server.
            timeout: The default deadline of a call: a `Timeout`, or seconds. It covers connecting and all retries.
            retries: How often a call is repeated when the server is unavailable or its queue is full; never otherwise.
                Two bridge a moment, 0.15 s at most; for a restart of the server give some twenty, and a deadline to go
                with them. With 0, nothing is held back from a server that refuses much either.
            channel_args: gRPC channel options, added to the client's own and winning over them.
            tls: A `Tls`, or True for an encrypted connection that trusts the system's roots. None connects without TLS.

        Raises:
            ValueError: An argument makes no sense, or a file of `tls` cannot be read; the message says which.
        """
        if not url or url.startswith(("http://", "https://", "grpc://")):
            raise ValueError(f"url is the gRPC endpoint as host:port, without a scheme, got {url!r}")
        if not domain:
            raise ValueError("domain is empty: give the name of the model to ask")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is a whole number from 0, got {retries!r}")
        if not isinstance(tls, (Tls, bool, type(None))):
            raise ValueError(f"tls is a Tls, True or None, got {type(tls).__name__}: name files by Tls(…)")
        self._endpoint = Endpoint(url, channel_args, tls, tls.read() if isinstance(tls, Tls) else None)
        self._domain = domain
        self._timeout = Timeout.of(timeout)
        self._retries = retries
        self._throttle = Throttle()
        self._closed = False
        self._process: int | None = None  # that connects, or has
        self._lock = threading.Lock()  # guards _closed and the connection

    @property
    def url(self) -> str:
        """The server's gRPC endpoint."""
        return self._endpoint.url

    @property
    def domain(self) -> str:
        """The domain that is asked."""
        return self._domain

    def __repr__(self) -> str:
        """Show whom this client asks."""
        return f"{type(self).__name__}({self.url!r}, domain={self.domain!r}, timeout={self._timeout.total:g})"

    def _deadline(self, timeout: Timeout | float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else Timeout.of(timeout))

    def _canary_client(self: Self) -> Self:
        """Return a client of the domain's canary: as this one, but whose failures count at once."""
        there = self._endpoint
        return type(self)(
            there.url,
            domain=f"{self.domain}{CANARY_SUFFIX}",
            timeout=self._timeout,
            retries=0,
            channel_args=there.channel_args,
            tls=there.tls,
        )

    def _attempts(self, deadline: Deadline) -> Attempts:
        return Attempts(deadline, self._retries)

    def _sending(self, model: str) -> AbstractContextManager[None]:
        """What a request is sent within; without retries, every refusal is the caller's own to deal with.

        The model that takes feedback refuses none for want of room, and what it takes says nothing of the domain's.
        """
        return self._throttle.attempt() if self._retries and model == self.domain else nullcontext()

    def _require_open(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed: make a new one")

    @property
    def _is_inherited(self) -> bool:
        """Whether a fork brought the client here from a process that had used it.

        Its connection is of no use then, and any lock of it may be held for ever: gRPC's too, so it is not even closed.
        """
        return self._process not in {None, os.getpid()}

    def _require_own_process(self) -> None:
        if self._is_inherited:
            raise ClientMoved(
                f"the client was used in process {self._process} before that forked: make one after the fork, or use "
                "spawn to start processes"
            )
        self._process = os.getpid()
