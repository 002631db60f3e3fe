"""What a verb takes for granted of the release that answers, held against what does."""

from __future__ import annotations

from .errors import PublishError, ReleaseError
from .layout import Layout
from .live_repository import LiveRepository
from .releases import ReleaseStore


def require_live(layout: Layout, domain: str, number: int) -> None:
    """Stop where another release answers than the one that something was made to follow, and lacks what that one has.

    Raises:
        PublishError: another one is live, or none.
    """
    live = LiveRepository(layout.live).live_release(domain)
    if live is None or live.number != number:
        answers = "none" if live is None else f"release {live.number}"
        raise PublishError(f"it was made to follow release {number}, but {answers} is live by now: it was left alone")


def refuse_to_undo_a_rollback(layout: Layout, domain: str, waiting: int | None = None) -> None:
    """Stop where a `deploy` after this one would make a release live that the verb did not mean.

    For a verb that made no release: what is newest then may be what was gone back from, or a canary.

    Args:
        layout: where everything lies.
        domain: the domain.
        waiting: the release that a `deploy` is to make live; None: that which answers.

    Raises:
        ReleaseError: neither is the newest.
    """
    live = LiveRepository(layout.live).live_release(domain)
    numbers = ReleaseStore(layout.releases(domain)).numbers()
    if live is not None and numbers and numbers[-1] not in {live.number, waiting or live.number}:
        raise ReleaseError(
            f"release {live.number} answers, which is not the newest, {numbers[-1]}: stopped here, so that no `deploy` "
            f"makes that one live by the way; `make deploy RELEASE={numbers[-1]}` does"
        )
