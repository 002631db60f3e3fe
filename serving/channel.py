"""Connections to the project's own server."""

from __future__ import annotations

from tritonclient import grpc

__all__ = ["WITHOUT_PROXY", "connect"]

WITHOUT_PROXY = ("grpc.enable_http_proxy", 0)
"""The server runs on this machine: a proxy that the environment names for others does not lead there."""
ANY_SIZE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
"""As tritonclient has it, unless it is given arguments."""


def connect(url: str) -> grpc.InferenceServerClient:
    """A client of the server at `url`; gRPC connects with the first call."""
    return grpc.InferenceServerClient(url, channel_args=[*ANY_SIZE, WITHOUT_PROXY])
