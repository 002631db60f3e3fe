"""Everything that a call can raise.

InstructRecError
├── InvalidRequest        the request is wrong: correct it, do not repeat it
├── DeadlineExceeded      no answer in time
├── ServerUnavailable     nothing answers there, or it is going away
│   ├── QueueFull         the server is there and refuses more work
│   └── ModelUnloaded     the server has let go of this domain, as one does that is going away
├── ModelNotFound         the server does not have this domain
├── ServerError           the server failed
├── ProtocolError         the answer is not what the contract says
├── ClientClosed          the client was used after close()
└── ClientMoved           the client was used in another process or event loop than the one it connected in
"""

# ruff: noqa: N818

__all__ = [
    "ClientClosed",
    "ClientMoved",
    "DeadlineExceeded",
    "InstructRecError",
    "InvalidRequest",
    "ModelNotFound",
    "ModelUnloaded",
    "ProtocolError",
    "QueueFull",
    "ServerError",
    "ServerUnavailable",
]


class InstructRecError(Exception):
    """Base of every error that a call to the server raises."""


class InvalidRequest(InstructRecError):
    """The request breaks the contract: found by the client before sending, or by the server (INVALID_ARGUMENT)."""


class DeadlineExceeded(InstructRecError):
    """The call's deadline passed, or would pass before the next attempt."""


class ServerUnavailable(InstructRecError):
    """Nothing answers at the address, or what answers cannot serve now (UNAVAILABLE), also after the retries."""


class QueueFull(ServerUnavailable):
    """The server refuses work so as to keep its latency, or did so much that this client holds some back.

    Send less, or add servers.
    """


class ModelUnloaded(ServerUnavailable):
    """The server has let go of the domain's model: it is going away, or the domain was taken down there.

    Another server of the same name may still answer, so it is asked again.
    """


class ModelNotFound(InstructRecError):
    """The server knows no model with the domain's name (NOT_FOUND)."""


class ServerError(InstructRecError):
    """The server answered with a fault of its own, which its log explains."""


class ProtocolError(InstructRecError):
    """The answer lacks a tensor, or one has the wrong type or shape: client and server are of different versions."""


class ClientClosed(InstructRecError):
    """The client was used after it was closed."""


class ClientMoved(InstructRecError):
    """The client was used in another process, or another event loop, than the one it connected in: make one there."""
