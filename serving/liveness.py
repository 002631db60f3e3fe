"""Tell a live release that is busy from one that is silent: a busy one answers others."""

from __future__ import annotations

import functools

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from .channel import connect
from .errors import BusyError, LateError, ServerError
from .probe import ProbeAnswer, patiently, probe_release
from .releases import Release

COUNTS_TIMEOUT_SECONDS = 2.0
BUSY_PAUSE_SECONDS = 0.1


def ask_domain(url: str, release: Release, *, timeout_seconds: float = 5.0) -> ProbeAnswer | None:
    """Probe a live release.

    Args:
        url: `host:port` of Triton's gRPC service.
        release: what should answer.
        timeout_seconds: how long to wait for an answer, and how long to ask again where it is refused.

    Returns:
        Its answer; None if it is too busy for one and answered others while the probe waited.

    Raises:
        BusyError: it refused every probe, and answered nobody.
        ReleaseError: the release lacks what it could be asked.
        ServerError: it is silent or not loaded; see `probe_release`.
    """
    with connect(url) as client:
        before = count_answers(client, release)
        try:
            once = functools.partial(probe_release, url, release, timeout_seconds=timeout_seconds)
            return patiently(once, timeout_seconds, BUSY_PAUSE_SECONDS)
        except (BusyError, LateError):
            # An overloaded server keeps a probe waiting behind others, whom it answers; where a step hangs, nobody is.
            if count_answers(client, release) <= before:
                raise
    return None


def count_answers(client: grpc.InferenceServerClient, release: Release) -> int:
    """How many requests to a release the server has answered.

    Raises:
        ServerError: it does not say, or does not serve it.
    """
    domain = release.manifest.domain
    try:
        statistics = client.get_inference_statistics(domain, str(release.number), client_timeout=COUNTS_TIMEOUT_SECONDS)
    except InferenceServerException as error:
        raise ServerError(f"{domain}: the server does not say what it answered: {error.message()}") from None
    return sum(one.inference_stats.success.count for one in statistics.model_stats)
