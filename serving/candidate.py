"""A release that is loaded and not live yet, asked under a name of its own.

The name is `<domain>_candidate`. Triton gets it over the wire: the live repository holds nothing of it, and a server
that starts anew does not know it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from google.protobuf import json_format
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from .admin import refusal
from .errors import PublishError, ServerError
from .live_repository import CONFIG_NAME, parse_config
from .probe import ask, patiently
from .releases import Release

WARM_UPS = 3
"""Requests until an answer takes as long as all that follow: the first ones touch memory and set up libraries."""
TIMEOUT_SECONDS = 5.0


@contextmanager
def candidate(client: grpc.InferenceServerClient, release: Release) -> Iterator[str]:
    """Have the server answer for a release whose steps are loaded, under a name that nobody else asks.

    Yields:
        The name.

    Raises:
        PublishError: Triton refuses it.
    """
    domain = release.manifest.domain
    config = parse_config((release.models / domain / CONFIG_NAME).read_text(encoding="utf-8"))
    config.name = f"{domain}_candidate"
    config.version_policy.specific.versions.append(release.number)
    try:
        client.load_model(
            config.name,
            config=json_format.MessageToJson(config, preserving_proto_field_name=True),
            files={f"file:{release.number}/release": f"{release.number}\n".encode()},
            client_timeout=30,
        )
        yield config.name
    except InferenceServerException as error:
        raise PublishError(refusal(config.name, error)) from None
    finally:
        with suppress(InferenceServerException):
            client.unload_model(config.name, client_timeout=10)


def answer_beforehand(client: grpc.InferenceServerClient, release: Release) -> None:
    """Have a release whose steps are loaded give its first answers before anybody else asks it.

    Raises:
        PublishError: Triton refuses it.
        ServerError: it does not answer.
    """
    with candidate(client, release) as name:
        for text in sample_texts(release, WARM_UPS):
            try:
                patiently(functools.partial(ask, client, name, text, timeout_seconds=TIMEOUT_SECONDS))
            except ServerError as error:
                raise ServerError(f"{name} {error.message}") from None


def sample_texts(release: Release, count: int) -> list[str]:
    """The first of a release's own instructions.

    Raises:
        ServerError: it has none.
    """
    texts: list[str] = []
    try:
        with release.instructions.open(encoding="utf-8") as stream:
            for line in stream:
                texts.append(str(json.loads(line)["text"]))
                if len(texts) == count:
                    break
    except (OSError, ValueError, KeyError):
        texts = []
    if not texts:
        raise ServerError(f"{release.instructions} has no instruction to measure with; export the release again")
    return texts
