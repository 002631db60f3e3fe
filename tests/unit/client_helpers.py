"""What tests of the client share: a gRPC server that fails on command, and both clients asked the same way."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from instructrec_client import AsyncClient, Client
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "going away")
CANCELLED = (grpc.StatusCode.CANCELLED, "CANCELLED")
UNLOADED = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'ecommerce' has no available versions")
STORE_LOCKED = "feedback cannot be stored: feedback store sqlite:///x: database is locked; nothing was acknowledged"
STORE_FAILS = (grpc.StatusCode.UNAVAILABLE, STORE_LOCKED)
QUEUE_FULL = (grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size")


def one_item(rows, item_id="item_id"):
    response = service_pb2.ModelInferResponse(model_version="1")
    for name, text in [("item_id", item_id), ("title", "title"), ("label", "label"), ("release", "release")]:
        response.outputs.add(name=name, datatype="BYTES", shape=(rows, 1))
        cells = np.full((rows, 1), text.encode(), dtype=object)
        response.raw_output_contents.append(serialize_byte_tensor(cells).item())
    for name, shape in [("score", (rows, 1)), ("reason", (rows, 1, 4))]:
        response.outputs.add(name=name, datatype="FP32", shape=shape)
        response.raw_output_contents.append(np.zeros(shape, np.float32).tobytes())
    return response


HOLD = "hold"
"""A step of the script: no answer until the test is over."""
PATIENCE = 60
"""Seconds that a busy machine may take for what an idle one does at once."""


class FaultyServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Plays its script, one step a request: a status to fail with, seconds to wait or `HOLD`. Afterwards it answers."""

    def __init__(self, script):
        self.script = list(script)
        self.seconds_left, self.server_timeouts, self.rows = [], [], []
        self.entered, self.over = threading.Event(), threading.Event()
        self.ready, self.ready_after = True, 0.0

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        self.seconds_left.append(context.time_remaining())
        self.server_timeouts.append(request.parameters["timeout"].int64_param)
        self.rows.append(request.inputs[0].shape[0])
        self.entered.set()
        step = self.script.pop(0) if self.script else 0
        if isinstance(step, tuple):
            context.abort(*step)
        if isinstance(step, service_pb2.ModelInferResponse):
            return step
        if step == HOLD:
            self.over.wait(PATIENCE)
        else:
            time.sleep(step)
        return one_item(self.rows[-1])

    def ModelReady(self, request, context):  # noqa: N802
        time.sleep(self.ready_after)
        if isinstance(self.ready, tuple):
            context.abort(*self.ready)
        return service_pb2.ModelReadyResponse(ready=self.ready)


@contextmanager
def serving(*script, port=0, credentials=None):
    """Yield the playing server, with TLS where it has credentials, and its address."""
    playing = FaultyServer(script)
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(playing, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield playing, f"127.0.0.1:{port}"
    finally:
        playing.over.set()
        server.stop(None).wait()


def blocking(url, name="recommend", argument="a shirt", *, settings=None, **keywords):
    with Client(url, **(settings or {})) as client:
        return getattr(client, name)(*([] if argument is None else [argument]), **keywords)


def awaited(url, name="recommend", argument="a shirt", *, settings=None, **keywords):
    async def call():
        async with AsyncClient(url, **(settings or {})) as client:
            return await getattr(client, name)(*([] if argument is None else [argument]), **keywords)

    return asyncio.run(call())
