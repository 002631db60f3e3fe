"""What answered when a verb began to make its successor, and whether it still does: another command may be at work."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError
from serving.errors import PublishError
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.preconditions import require_live
from serving.releases import Release

__all__ = ["Followed"]


@dataclass(frozen=True)
class Followed:
    """The release that answered when something was begun that is to take its place.

    Attributes:
        layout: where everything lies.
        domain: the domain.
        number: the release's; None if none answered, and there is nothing to lose.
    """

    layout: Layout
    domain: str
    number: int | None

    @classmethod
    def now(cls, layout: Layout, domain: str) -> Followed:
        """What answers now."""
        live = LiveRepository(layout.live).live_release(domain)
        return cls(layout, domain, None if live is None else live.number)

    def check(self) -> None:
        """Stop where another one answers by now.

        Raises:
            PublishError: it does; what was made lacks what that one has.
        """
        if self.number is not None:
            require_live(self.layout, self.domain, self.number)

    def check_before_deploy(self, made: Release, verb: str) -> None:
        """Stop, so that no `deploy` after the verb publishes what was made over what that lacks.

        Raises:
            ExportError: another release answers by now.
        """
        try:
            self.check()
        except PublishError as error:
            raise ExportError(
                f"release {made.number}: {error.message}; run `make {verb}` again, which starts from what answers"
            ) from None
