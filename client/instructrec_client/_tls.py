"""TLS: the files that a caller names, and their check."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Tls"]


@dataclass(frozen=True)
class Tls:
    """An encrypted connection: PEM files, read when a client is made with them; for mutual TLS they are no pipes.

    Attributes:
        root_certificates: Whom to trust; the system's roots where None.
        private_key: The client's own key, for mutual TLS.
        certificate_chain: The client's own certificates, for mutual TLS.

    Raises:
        ValueError: Only one of the key and its certificates is given.
    """

    root_certificates: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check that key and certificates come together."""
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("mutual TLS needs both private_key and certificate_chain")

    def read(self) -> dict[str, bytes | None]:
        """Return each file's content by the attribute that names it; None where none is named.

        Raises:
            ValueError: A file cannot be read, or does not hold what it is to hold; the message names it.
        """
        content = {name: None if path is None else _read_pem(name, path) for name, path in vars(self).items()}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong keys have to be is for gRPC to say
        for name in ("root_certificates", "certificate_chain"):
            held = content[name]
            if held is not None:
                with _naming(f"{name} {os.fspath(getattr(self, name))} holds no certificate that is whole"):
                    context.load_verify_locations(cadata=held.decode("ascii", errors="ignore"))
        if self.private_key is not None and self.certificate_chain is not None:
            chain, key = os.fspath(self.certificate_chain), os.fspath(self.private_key)
            with _naming(f"private_key {key} does not hold the key of {chain}, whole and without a password"):
                context.load_cert_chain(chain, key, password=lambda: "")
        return content


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ValueError(f"tls: {what} ({getattr(error, 'reason', None) or error})") from None


def _read_pem(name: str, path: str | os.PathLike[str]) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"tls: {name} {os.fspath(path)} cannot be read: {error.strerror or error}") from None
    if b"-----BEGIN " not in content:
        raise ValueError(f"tls: {name} {os.fspath(path)} is not PEM (it has no line that begins with -----BEGIN)")
    return content
