"""Asks the service over gRPC at next to no cost of its own, so that what is measured is the server.

Requests are serialised before the clock starts; answers are kept as bytes and read after it has stopped, every one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

import grpc
import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from loadtest.errors import LoadTestError, queue_too_short
from loadtest.workload import Query, shuffled
from serving.channel import WITHOUT_PROXY
from serving.steps.limits import QUEUE_FULL

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 30.0
TOP_K = 10


class LeanCaller:
    """A number of threads, each of which sends its next request when it has the answer to the one before."""

    def __init__(self, url: str, domain: str, queries: Sequence[Query]) -> None:
        """Serialise one request a query."""
        self._url = url
        self._requests = [serialised(domain, query) for query in shuffled(queries)]

    def run(self, in_flight: int, seconds: float) -> tuple[float, float]:
        """Keep a number of requests in flight for a while.

        Returns:
            The median milliseconds of a request, and answers a second.

        Raises:
            LoadTestError: a request failed, or an answer is not what was asked for.
        """
        times: list[float] = []
        answers: list[bytes] = []
        failures: list[LoadTestError] = []
        numbers = itertools.count()  # shared; one step of it is never interrupted

        def ask(call: grpc.UnaryUnaryMultiCallable[bytes, bytes], end: float) -> None:
            try:
                while (sent := time.perf_counter()) < end:
                    request = self._requests[next(numbers) % len(self._requests)]
                    answers.append(call(request, timeout=TIMEOUT_S))
                    times.append((time.perf_counter() - sent) * 1_000)
            except grpc.RpcError as error:
                said = f"{self._url}: {error.code().name}: {error.details()}"
                failures.append(queue_too_short(self._url, in_flight) if QUEUE_FULL in said else LoadTestError(said))

        with grpc.insecure_channel(self._url, options=[WITHOUT_PROXY]) as channel:
            call = channel.unary_unary(METHOD)
            ask(call, time.perf_counter() + min(0.1, seconds))  # connects, and fills the caches
            times.clear()
            began = time.perf_counter()
            threads = [threading.Thread(target=ask, args=(call, began + seconds)) for _ in range(in_flight)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - began
        if failures:
            raise failures[0]
        for answer in answers:
            check_answer(answer)
        return float(np.median(times)), len(times) / took


def serialised(domain: str, query: Query) -> bytes:
    """A query as the bytes of a `ModelInferRequest`."""
    request = service_pb2.ModelInferRequest(model_name=domain)
    history = np.array([one.encode() for one in query.history], dtype=np.object_)[None]
    strings = {"instruction": np.array([[query.text.encode()]], dtype=np.object_), "history": history}
    for name, values in strings.items():
        request.inputs.add(name=name, datatype="BYTES", shape=values.shape)
        request.raw_input_contents.append(serialize_byte_tensor(values).item() if values.size else b"")
    request.inputs.add(name="top_k", datatype="INT32", shape=(1, 1))
    request.raw_input_contents.append(np.int32(TOP_K).tobytes())
    return bytes(request.SerializeToString())


def check_answer(message: bytes) -> None:
    """Check the bytes of a `ModelInferResponse`.

    Raises:
        LoadTestError: it has not `TOP_K` different items, or their scores are no numbers or rise.
    """
    result = tritonclient.grpc.InferResult(service_pb2.ModelInferResponse.FromString(message))
    items, score = result.as_numpy("item_id"), result.as_numpy("score")
    if items is None or score is None or score.shape != (1, TOP_K) or len(set(items.reshape(-1).tolist())) != TOP_K:
        raise LoadTestError(f"an answer does not hold {TOP_K} different items")
    if not (np.isfinite(score).all() and (np.diff(score) <= 0).all()):
        raise LoadTestError("an answer's scores are not finite, or rise")
