"""What a server does for its operator alone: whoever may load a model may run any code as the server's user.

Triton asks for a key before it loads, unloads or lists models, registers shared memory, or changes what it traces and
logs. A `VAR` has one key, made at its first start: the watcher starts a server again on a full disk, where no new one
could be written, and a command that is at work then goes on with the one it has.
"""

from __future__ import annotations

from typing import Any

from tritonclient import grpc
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from feedback.errors import StoreError
from feedback.people import create_key, read_key

from .channel import connect
from .errors import PreflightError, ServerError, ServingError
from .layout import Layout

RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
"""By Triton's names. Clients and probes use the others: health, metadata, inference, model-config, statistics."""
HEADER = "admin-key"
"""The header by HTTP; by gRPC Triton wants it as `triton-grpc-protocol-admin-key`."""
NAME = "the server's admin key"


class _AdminKey(InferenceServerClientPlugin):  # type: ignore[misc]
    """Sends the key along with every request."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers[f"triton-grpc-protocol-{HEADER}"] = self._key


def restrictions(key: str) -> list[str]:
    """The options by which tritonserver asks for the key.

    It reads them from its command line alone, where other users of the machine can see them.
    """
    setting = f"{','.join(RESTRICTED)}:{HEADER}={key}"
    return [f"--grpc-restricted-protocol={setting}", f"--http-restricted-api={setting}"]


def ensure_key(layout: Layout) -> str:
    """The key that a server is to be started with; made if there is none.

    Raises:
        PreflightError: it cannot be read or written.
    """
    try:
        if not layout.admin_key.exists():
            create_key(layout.admin_key, NAME)
        layout.admin_key.chmod(0o600)  # a copy of VAR may have come with wider permissions
    except StoreError as error:
        raise PreflightError(str(error)) from None
    except OSError as error:
        raise PreflightError(f"{NAME}, {layout.admin_key}, cannot be protected: {error.strerror}") from None
    return _read(layout, PreflightError)


def admin_client(layout: Layout, url: str) -> grpc.InferenceServerClient:
    """A client that may do everything on the server of this `VAR`.

    Without a key it may so only on a server that asks for none: one started by another program than ours.

    Raises:
        ServerError: the key cannot be read.
    """
    plugin = _AdminKey(_read(layout, ServerError)) if layout.admin_key.exists() else None
    client = connect(url)
    if plugin is not None:
        client.register_plugin(plugin)
    return client


def refusal(model: str, error: InferenceServerException) -> str:
    """Why Triton refuses to load a model, in one line; and what helps where it asks for another key than it got."""
    reason = " ".join(error.message().split())  # a line a version, where several do not load
    remedy = ""
    if "protocol is restricted" in reason:
        remedy = (
            "; VAR/admin.key is gone, or not the one that the server was started with: "
            "run `make stop start`, which makes one where there is none, and try again"
        )
    return f"Triton refuses {model}: {reason}{remedy}"


def _read(layout: Layout, failure: type[ServingError]) -> str:
    try:
        key = read_key(layout.admin_key, NAME).decode("ascii", errors="replace")
        if not (key.isascii() and key.isalnum()):  # it stands in an option and in a header
            raise StoreError(f"{NAME}, {layout.admin_key}, is not made of letters and digits")
    except StoreError as error:
        raise failure(f"{error}; remove the file and run `make stop start` for a new one") from None
    return key
