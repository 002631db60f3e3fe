"""What can go wrong while publishing and serving.

ServingError
├── ReleaseError        a release is missing, incomplete or damaged
├── PublishError        a release could not be made live; the one before it still answers
│   └── GateError       it did not pass a gate
├── ServerError         the server does not run, does not start or does not answer
│   ├── BusyError       it refuses a request because too many wait
│   └── LateError       it leaves a request unanswered for longer than its sender waits
└── PreflightError      the machine lacks what the server needs: a port, shared memory, a library
"""

import click


class ServingError(click.ClickException):
    """Base of this room's errors; a command line prints its message in one line and exits with 1."""


class ReleaseError(ServingError):
    """A release is missing, incomplete or damaged."""


class PublishError(ServingError):
    """A release could not be made live; the one before it still answers."""


class GateError(PublishError):
    """A release did not pass a gate; the one before it still answers."""


class ServerError(ServingError):
    """The server does not run, does not start or does not answer."""


class BusyError(ServerError):
    """The server refuses a request because too many wait: it lives, and is asked for more than it can do."""


class LateError(ServerError):
    """The server has not answered a request in time: it hangs, or is asked for more than it can do."""


class PreflightError(ServingError):
    """The machine lacks what the server needs: a free port, shared memory, a library."""
