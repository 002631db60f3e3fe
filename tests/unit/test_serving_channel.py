"""How this project's commands reach its own server."""

import pytest
from client_helpers import serving

from serving.channel import connect


def test_the_environments_proxy_is_not_asked_for_a_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    with serving() as (_, url), connect(url) as client:
        assert client.is_model_ready("ecommerce", client_timeout=60)
