"""A client whose server stops while it asks: whatever it meets, it learns that another server may answer."""

import threading
import time
from pathlib import Path

from instructrec_client import Client, InstructRecError, ModelUnloaded, ServerUnavailable
from project import Project, free_ports

from export.settings import ServingSettings
from serving.embedded import Endpoints
from serving.layout import Layout
from serving.releases import Release
from serving.server import Server
from sweep.variant import ReleaseParts


def test_a_server_that_goes_away_is_unavailable_all_the_time(small: Project, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "var")
    ReleaseParts.of(Release(small.var / "releases" / "ecommerce" / "1")).lay_out(
        layout.live, "shop", ServingSettings(length_buckets=(16, 64))
    )
    grpc_port, http_port, metrics_port = free_ports(3)
    server = Server(layout)
    met: list[InstructRecError] = []
    stopped, answered = threading.Event(), threading.Event()

    def ask(url: str) -> None:
        with Client(url, domain="shop", timeout=30, retries=0) as client:
            while not stopped.is_set():
                try:
                    client.recommend("a blue shirt")
                    answered.set()
                except InstructRecError as error:
                    met.append(error)
                    time.sleep(0.01)

    try:
        state = server.start(Endpoints(grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port), ["shop"])
        server.wait_until_ready(state, ["shop"])
        asking = threading.Thread(target=ask, args=[state.endpoints.grpc_url])
        asking.start()
        assert answered.wait(60)
        server.stop()
        stopped.set()
        asking.join()
    finally:
        stopped.set()
        server.stop(drain_seconds=1)
    assert all(isinstance(error, ServerUnavailable) for error in met), {str(error) for error in met}
    assert any(isinstance(error, ModelUnloaded) for error in met), {str(error) for error in met}
