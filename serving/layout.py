"""Where everything that is produced lies: one folder, `VAR`, so that two can live side by side."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths below `VAR`.

    Attributes:
        var: the folder itself.
    """

    var: Path

    def __post_init__(self) -> None:
        """Name the folder in one way, however it was reached: absolute, without `..`, and past every link.

        The server outlives the command that started it, and its working folder; and its processes are told by the name.
        """
        object.__setattr__(self, "var", Path(os.path.realpath(self.var)))  # which passes over a link to itself

    def releases(self, domain: str) -> Path:
        """A domain's numbered releases."""
        return self.var / "releases" / domain

    def journal(self, domain: str) -> Path:
        """When which release of a domain went live."""
        return self.var / "journal" / f"{domain}.jsonl"

    def canary_journal(self, domain: str) -> Path:
        """What became of a domain's canaries."""
        return self.var / "journal" / f"{domain}.canary.jsonl"

    @property
    def live(self) -> Path:
        """The live repository: the folder that Triton reads."""
        return self.var / "live"

    @property
    def backends(self) -> Path:
        """Triton's backend directory, assembled from the wheel and our Python-based backends."""
        return self.var / "cache" / "backends"

    @property
    def feedback(self) -> Path:
        """The embedded feedback store and the key of user ids."""
        return self.var / "feedback"

    @property
    def server_state(self) -> Path:
        """What is known of the server that was started last."""
        return self.var / "server.json"

    @property
    def admin_key(self) -> Path:
        """The key to what the server does for its operator alone; see `admin`."""
        return self.var / "admin.key"

    @property
    def stopped_server_state(self) -> Path:
        """The same of a server that was stopped: the next may listen where it did."""
        return self.var / "server.stopped.json"

    @property
    def server_log(self) -> Path:
        """The server's log."""
        return self.var / "logs" / "triton.log"

    @property
    def watcher_log(self) -> Path:
        """What the watcher did, and why."""
        return self.var / "logs" / "watcher.log"

    @property
    def watcher_lock(self) -> Path:
        """Held by the watcher as long as it lives."""
        return self.var / "watcher.lock"

    @property
    def lock(self) -> Path:
        """Held while a server is started, stopped or published to; the kernel drops it when its holder dies."""
        return self.var / "serving.lock"

    @property
    def shared_memory_prefix(self) -> str:
        """How the names of this server's shared memory regions start: they tell ours from any other's."""
        return f"instructrec_{hashlib.sha256(str(self.var).encode()).hexdigest()[:12]}_"
