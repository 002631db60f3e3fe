"""Asks the service over gRPC at next to no cost of its own, so that what is measured is the server.

Requests are serialised before the clock starts, answers are read after it has stopped: every one of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import grpc
import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from loadtest.errors import LoadTestError
from loadtest.workload import Query

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 30.0
K = 10


class LeanCaller:
    """A number of threads, each of which sends its next request when it has the answer to the one before."""

    def __init__(self, url: str, domain: str, queries: Sequence[Query]) -> None:
        """Serialise one request a query."""
        self._url = url
        self._requests = [serialised(domain, query) for query in queries]

    def run(self, in_flight: int, seconds: float) -> tuple[float, float]:
        """Keep a number of requests in flight for a while.

        Returns:
            The median milliseconds of a request, and answers a second.

        Raises:
            LoadTestError: a request failed, or an answer is not what was asked for.
        """
        times: list[float] = []
        answers: list[bytes] = []
        failures: list[str] = []
        with grpc.insecure_channel(self._url) as channel:
            call = channel.unary_unary(METHOD)
            turn = iter(range(10**9))

            def ask(end: float) -> None:
                try:
                    while (sent := time.perf_counter()) < end:
                        request = self._requests[next(turn) % len(self._requests)]
                        answers.append(call(request, timeout=TIMEOUT_S))
                        times.append((time.perf_counter() - sent) * 1_000)
                except grpc.RpcError as error:
                    failures.append(f"{error.code().name}: {error.details()}")

            call(self._requests[0], timeout=TIMEOUT_S)
            began = time.perf_counter()
            threads = [threading.Thread(target=ask, args=(began + seconds,)) for _ in range(in_flight)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - began
        if failures:
            raise LoadTestError(f"{self._url}: {failures[0]}")
        for answer in answers:
            check_answer(answer)
        self.count = len(times)
        return float(np.median(times)), len(times) / took


def serialised(domain: str, query: Query) -> bytes:
    """A query as the bytes of a gRPC message."""
    request = service_pb2.ModelInferRequest(model_name=domain)
    tensors = {
        "instruction": np.array([[query.text.encode()]], dtype=np.object_),
        "history": np.array([one.encode() for one in query.history], dtype=np.object_)[None],
        "top_k": np.full((1, 1), K, dtype=np.int32),
    }
    for name, values in tensors.items():
        strings = values.dtype == np.object_
        request.inputs.add(name=name, datatype="BYTES" if strings else "INT32", shape=values.shape)
        content = serialize_byte_tensor(values) if strings else values
        request.raw_input_contents.append(
            content.tobytes() if not strings else b"".join(content.reshape(-1).tolist()) if values.size else b""
        )
    return bytes(request.SerializeToString())


def check_answer(message: bytes) -> None:
    """Check the bytes of an answer.

    Raises:
        LoadTestError: it has not `K` different items, or their scores are no numbers or rise.
    """
    result = tritonclient.grpc.InferResult(service_pb2.ModelInferResponse.FromString(message))
    score, items = result.as_numpy("score"), result.as_numpy("item_id")
    if score.shape != (1, K) or len(set(items.reshape(-1).tolist())) != K:
        raise LoadTestError(f"an answer does not hold {K} different items")
    if not (np.isfinite(score).all() and (np.diff(score) <= 0).all()):
        raise LoadTestError("an answer's scores are not finite, or rise")
