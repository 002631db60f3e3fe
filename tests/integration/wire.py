"""Requests below the client's checks: what any gRPC caller could send."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def request(texts: list[bytes], history: list[list[bytes]] | None = None, k: int = 5) -> dict[str, np.ndarray]:
    """The contract's inputs as arrays, whatever is in them."""
    rows = len(texts)
    return {
        "instruction": np.array([[text] for text in texts], dtype=np.object_).reshape(rows, 1),
        "history": np.array(history if history is not None else [[]] * rows, dtype=np.object_).reshape(rows, -1),
        "top_k": np.full((rows, 1), k, dtype=np.int32),
    }


def infer_inputs(arrays: dict[str, np.ndarray]) -> list[grpc.InferInput]:
    tensors = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


@dataclass
class Answer:
    """A result, or the error that came instead."""

    result: Any
    error: InferenceServerException | None

    @property
    def status(self) -> str:
        return "OK" if self.error is None else str(self.error.status()).removeprefix("StatusCode.")


def send_together(
    url: str, model: str, requests: Iterable[dict[str, np.ndarray]], *, in_flight: int = 64
) -> list[Answer]:
    """Send requests without waiting for the one before, so that Triton batches them; answers come in the order sent."""
    sent = list(requests)
    answers: list[Answer | None] = [None] * len(sent)
    places = threading.Semaphore(in_flight)
    with grpc.InferenceServerClient(url) as client:
        for number, arrays in enumerate(sent):
            places.acquire()

            def done(result: Any, error: InferenceServerException | None, number: int = number) -> None:
                answers[number] = Answer(result, error)
                places.release()

            try:
                client.async_infer(model, infer_inputs(arrays), done, client_timeout=60)
            except InferenceServerException as error:  # refused before it was sent
                done(None, error)
        for _ in range(in_flight):
            assert places.acquire(timeout=120), "a request was never answered"
    return [answer for answer in answers if answer is not None]
