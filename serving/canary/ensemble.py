"""The canary's ensemble in the live repository: `<domain>_canary`, on step versions that may be the live one's too.

All that is known of a canary stands in its config.pbtxt, so that it appears and goes in one step, is there again after
a restart of the server, and can be read by any client over the wire (`ModelConfig`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ..admin import admin_client
from ..errors import PublishError
from ..files import remove, write_atomically
from ..layout import Layout
from ..line_journal import now
from ..live_repository import (
    CANARY_OF,
    CONFIG_NAME,
    RETIRED,
    LiveRepository,
    format_config,
    parse_config,
    read_config,
)
from ..releases import Release
from .evidence import Requests

SHARE = "canary_share"
SINCE = "canary_since"
FORCED = "canary_forced"
LIVE_BEFORE = "canary_live_before"
REFUSED_BEFORE = "canary_refused_before"


@dataclass(frozen=True)
class Canary:
    """A canary that is up.

    Attributes:
        domain: whose.
        release: its release's number.
        share: of the people it is meant to answer, above 0, at most 1; 0: nobody but shadows asks it.
        since: when it came up or its share was changed, ISO 8601 in UTC: the evidence begins there.
        forced: the gates that it did not pass and came up all the same.
        live_before: what the server had counted of the live ensemble by then; None: nobody wrote it down.
        refused_before: requests that its own first step, which may have been loaded already, had refused by then; None:
            nobody knows.
    """

    domain: str
    release: int
    share: float
    since: str
    forced: tuple[str, ...] = ()
    live_before: Requests | None = None
    refused_before: int | None = None

    @property
    def model(self) -> str:
        """The name of its ensemble."""
        return canary_name(self.domain)

    @property
    def start(self) -> datetime.datetime:
        """When its evidence begins."""
        return datetime.datetime.fromisoformat(self.since)


def canary_name(domain: str) -> str:
    """The name of a domain's canary."""
    return f"{domain}_canary"


def read_canary(repository: LiveRepository, domain: str) -> Canary | None:
    """The domain's canary, or None if none is up.

    Raises:
        PublishError: its config is damaged, or something else is called as it should be.
    """
    path = repository.folder / canary_name(domain) / CONFIG_NAME
    if not path.is_file():
        return None
    config = read_config(path)
    values = {name: value.string_value for name, value in config.parameters.items()}
    try:
        if values[CANARY_OF] != domain:
            raise ValueError(values[CANARY_OF])
        return Canary(
            domain=domain,
            release=config.version_policy.specific.versions[0],
            share=float(values[SHARE]),
            since=values[SINCE],
            forced=tuple(filter(None, values.get(FORCED, "").split(","))),
            live_before=Requests(**json.loads(values[LIVE_BEFORE])) if LIVE_BEFORE in values else None,
            refused_before=int(values[REFUSED_BEFORE]) if REFUSED_BEFORE in values else None,
        )
    except (KeyError, ValueError, IndexError, TypeError):
        raise PublishError(
            f"{path} is no canary of {domain}; remove its folder and load nothing of that name"
        ) from None


def canaries(repository: LiveRepository) -> Iterator[Canary]:
    """The canaries of all domains; one that is damaged is left out, for it must keep nobody from anything."""
    for domain in repository.domains():
        with suppress(PublishError):
            canary = read_canary(repository, domain)
            if canary is not None:
                yield canary


def new_canary(
    release: Release, share: float, forced: tuple[str, ...], live_before: Requests, refused_before: int | None = None
) -> Canary:
    """A canary of a release, from now."""
    return Canary(release.manifest.domain, release.number, share, now(), forced, live_before, refused_before)


def with_share(canary: Canary, share: float, live_before: Requests, refused_before: int | None = None) -> Canary:
    """The same with another share; its evidence begins anew.

    What was seen under two shares cannot be added up: a release that had more of the people on a bad day, or whose
    impressions are the younger ones, looks worse for that alone.
    """
    return replace(canary, share=share, since=now(), live_before=live_before, refused_before=refused_before)


def write_canary(repository: LiveRepository, canary: Canary, release: Release) -> None:
    """Put the ensemble in, whole or not at all; its steps must be staged.

    Raises:
        PublishError: the folder cannot be written.
    """
    domain = release.manifest.domain
    config = parse_config((release.models / domain / CONFIG_NAME).read_text(encoding="utf-8"))
    config.name = canary.model
    config.version_policy.specific.versions.append(canary.release)
    parameters = {
        CANARY_OF: domain,
        SHARE: repr(canary.share),
        SINCE: canary.since,
        FORCED: ",".join(canary.forced),
    }
    if canary.refused_before is not None:
        parameters[REFUSED_BEFORE] = str(canary.refused_before)
    if canary.live_before is not None:
        parameters[LIVE_BEFORE] = json.dumps(asdict(canary.live_before))
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    folder = repository.folder / canary.model
    try:
        # Triton wants the version's folder; not every store keeps empty ones.
        write_atomically(folder / str(canary.release) / "release", f"{canary.release}\n".encode())
        write_atomically(folder / CONFIG_NAME, format_config(config).encode())
    except OSError as error:
        raise PublishError(f"cannot write the live repository {folder}: {error.strerror or error}") from None


def remove_canary(repository: LiveRepository, domain: str, client: grpc.InferenceServerClient | None) -> None:
    """Take the ensemble out: requests on their way are answered, later ones meet NOT_FOUND.

    Args:
        repository: the live repository.
        domain: whose canary; none being up is fine.
        client: of the server, if one runs.

    Raises:
        PublishError: the folder cannot be written.
    """
    folder: Path = repository.folder / canary_name(domain)
    try:
        if folder.is_dir():
            # First the config: without it the rest is no model, whenever we are killed.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
            retired = folder.with_name(f"{RETIRED}{folder.name}")
            remove(retired)
            folder.rename(retired)
            remove(retired)
    except OSError as error:
        raise PublishError(f"cannot write the live repository {folder}: {error.strerror or error}") from None
    if client is not None:
        with suppress(InferenceServerException):
            client.unload_model(canary_name(domain), client_timeout=10)


def load_canaries(layout: Layout, url: str) -> list[str]:
    """Have a server that has just started serve the canaries too.

    Returns:
        The names of those that it refuses: a canary that is broken keeps no server from starting.
    """
    refused = []
    with admin_client(layout, url) as client:
        for canary in canaries(LiveRepository(layout.live)):
            try:
                client.load_model(canary.model, client_timeout=60)
            except InferenceServerException:
                refused.append(canary.model)
    return refused


def leave_to_live(layout: Layout, domain: str, number: int, url: str) -> bool:
    """Take the canary down if its release has just become the live one.

    Returns:
        Whether it was.
    """
    repository = LiveRepository(layout.live)
    try:
        canary = read_canary(repository, domain)
    except PublishError:
        return False  # damaged: no reason to call a publication failed
    if canary is None or canary.release != number:
        return False
    with admin_client(layout, url) as client:
        remove_canary(repository, domain, client)
    return True
