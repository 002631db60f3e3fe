"""Ask the ensemble for a real recommendation: the only readiness that can be trusted.

Triton goes on saying READY when a Python stub was killed or a pinned version is missing; an inference does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from .channel import connect
from .errors import BusyError, LateError, ReleaseError, ServerError
from .releases import Release
from .steps.limits import QUEUE_FULL

REFUSED_SECONDS = 5.0
REFUSED_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class ProbeAnswer:
    """What the ensemble answered.

    Attributes:
        release: the release that says it answered.
        model_version: the ensemble's version, which is the release's number.
        milliseconds: how long the answer took, as the caller saw it.
    """

    release: str
    model_version: str
    milliseconds: float


def probe(url: str, domain: str, text: str, *, timeout_seconds: float = 5.0) -> ProbeAnswer:
    """Send one instruction and check the shape and order of the answer.

    Args:
        url: `host:port` of Triton's gRPC service.
        domain: the ensemble.
        text: an instruction of the domain.
        timeout_seconds: how long to wait.

    Raises:
        BusyError: too many requests wait.
        LateError: no answer in time.
        ServerError: an error, or an answer that breaks the wire contract.
    """
    try:
        with connect(url) as client:
            return ask(client, domain, text, timeout_seconds=timeout_seconds)
    except ServerError as error:
        raise type(error)(f"{domain} at {url} {error.message}") from None


def ask(client: grpc.InferenceServerClient, domain: str, text: str, *, timeout_seconds: float = 5.0) -> ProbeAnswer:
    """As `probe`, over a connection that is there: the first request over a new one takes milliseconds more.

    Raises:
        ServerError: as `probe`; the message goes on after the name of what was asked.
    """
    instruction = grpc.InferInput("instruction", [1, 1], "BYTES")
    instruction.set_data_from_numpy(np.array([[text.encode("utf-8")]], dtype=np.object_))
    history = grpc.InferInput("history", [1, 0], "BYTES")
    history.set_data_from_numpy(np.empty((1, 0), dtype=np.object_))
    top_k = grpc.InferInput("top_k", [1, 1], "INT32")
    top_k.set_data_from_numpy(np.array([[10]], dtype=np.int32))
    started = time.perf_counter()
    try:
        result = client.infer(domain, [instruction, history, top_k], client_timeout=timeout_seconds)
    except InferenceServerException as error:
        raise _kind(error)(f"does not answer: {error.message()}") from None
    elapsed = (time.perf_counter() - started) * 1_000
    score, items = result.as_numpy("score"), result.as_numpy("item_id")
    if items.size == 0 or not np.isfinite(score).all() or (np.diff(score) > 0).any():
        raise ServerError("answered without items, or with scores that are not finite and descending")
    release = result.as_numpy("release").reshape(-1)[0].decode("utf-8")
    return ProbeAnswer(release=release, model_version=result.get_response().model_version, milliseconds=elapsed)


def patiently(
    probe: Callable[[], ProbeAnswer], seconds: float = REFUSED_SECONDS, pause_seconds: float = REFUSED_PAUSE_SECONDS
) -> ProbeAnswer:
    """Probe, and go on where the probe is refused: an overloaded server refuses some requests and answers others.

    Args:
        probe: asks once.
        seconds: how long to ask again.
        pause_seconds: between two probes.

    Raises:
        BusyError: each one was refused.
        ServerError: as the probe does.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return probe()
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(pause_seconds)


def _kind(error: InferenceServerException) -> type[ServerError]:
    if QUEUE_FULL in str(error.message()):
        return BusyError
    return LateError if error.status() == "StatusCode.DEADLINE_EXCEEDED" else ServerError


def probe_release(url: str, release: Release, *, model: str | None = None, timeout_seconds: float = 5.0) -> ProbeAnswer:
    """Probe with a release's own first instruction and insist that this very release answers.

    Args:
        url: `host:port` of Triton's gRPC service.
        release: the release.
        model: the ensemble to ask; that of the release's domain if None.
        timeout_seconds: how long to wait.

    Raises:
        ReleaseError: its instructions cannot be read, which says nothing about the server.
        ServerError: see `probe`; or another release answered.
    """
    try:
        with release.instructions.open(encoding="utf-8") as stream:
            text = json.loads(stream.readline())["text"]
    except OSError as error:
        raise ReleaseError(f"{release.instructions} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise ReleaseError(
            f"{release.instructions} has no instruction to probe with; export the release again"
        ) from None
    model = model or release.manifest.domain
    answer = probe(url, model, text, timeout_seconds=timeout_seconds)
    expected = str(release.number)
    if (answer.release, answer.model_version) != (expected, expected):
        raise ServerError(
            f"{model} at {url}: release {answer.release} (version {answer.model_version}) answers, expected {expected}"
        )
    return answer
