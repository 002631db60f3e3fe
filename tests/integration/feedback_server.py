"""A real server that serves the feedback model and nothing else: it starts in seconds and may be harmed at will."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
from project import free_ports
from tritonclient.utils import InferenceServerException

from feedback.location import Location
from feedback.reader import FeedbackReader
from serving import process_tree
from serving.admin import admin_client
from serving.embedded import Endpoints
from serving.feedback_model import MODEL, stage_feedback
from serving.layout import Layout
from serving.server import Server

PORTS = ("grpc_port", "http_port", "metrics_port")


@dataclass(frozen=True)
class FeedbackServer:
    layout: Layout
    endpoints: Endpoints

    @property
    def url(self) -> str:
        return self.endpoints.grpc_url

    @property
    def location(self) -> Location:
        return Location.below(self.layout.var)

    def reader(self) -> FeedbackReader:
        return FeedbackReader(self.location)

    def start(self) -> None:
        stage_feedback(self.layout)
        server = Server(self.layout)
        server.wait_until_ready(server.start(self.endpoints, []), [MODEL])

    def stop(self) -> None:
        Server(self.layout).stop(drain_seconds=3)

    def process(self, name: str) -> psutil.Process:
        """The running server, or its one stub."""
        tree = process_tree.processes(self.layout.shared_memory_prefix)
        return next(one for one in tree if Path(one.cmdline()[0]).name == name)

    def kill(self) -> None:
        server = self.process("tritonserver")
        server.kill()
        server.wait(60)  # until its ports are free

    def kill_stub(self) -> None:
        self.process("triton_python_backend_stub").kill()

    def restart_stub(self) -> None:
        """Bring back a stub that was killed: Triton does not notice that it is gone until the model looks changed."""
        os.utime(next((self.layout.live / MODEL).glob("*/model.py")))
        try:
            with admin_client(self.layout, self.url) as client:
                client.load_model(MODEL)
        except InferenceServerException:
            if Server(self.layout).state() is not None:
                raise
            self.start()  # Triton itself ends at this once in a while; then the watcher, which is not here, starts it


def feedback_server(var: Path) -> FeedbackServer:
    return FeedbackServer(Layout(var), Endpoints(**dict(zip(PORTS, free_ports(3), strict=True))))
