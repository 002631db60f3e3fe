"""The last FP32 graph of a domain with its report, so that an export at another precision need not make it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from export.report import VerificationReport
from serving.files import sha256_of, write_atomically

__all__ = ["KeptGraph", "ReadyGraphs"]

_REPORTS = TypeAdapter(list[VerificationReport])


class KeptGraph:
    """One graph a domain, below `VAR/cache/graphs`; what it was made of says whether it is still of use.

    It is a copy: nothing that is served or released lies there, and whoever removes it loses time alone.
    """

    def __init__(self, var: Path, domain: str, made_of: Sequence[str]) -> None:
        """Name what a graph is made of and was held against."""
        folder = var / "cache" / "graphs"
        self._graph, self._record = folder / f"{domain}-fp32.onnx", folder / f"{domain}-fp32.json"
        self._key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()

    def take(self, path: Path) -> list[VerificationReport] | None:
        """Copy the graph to `path` and return its reports; None if there is none of the same, or a damaged one."""
        try:
            record = json.loads(self._record.read_bytes())
            if record["key"] != self._key or sha256_of(self._graph) != record["sha256"]:
                return None
            reports = _REPORTS.validate_python(record["reports"])
            shutil.copyfile(self._graph, path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return reports

    def keep(self, path: Path, reports: Sequence[VerificationReport]) -> None:
        """Copy the graph at `path` with its reports, in place of the one before; what fails half-way counts as none."""
        record = {
            "key": self._key,
            "sha256": sha256_of(path),
            "reports": [report.model_dump(mode="json") for report in reports],
        }
        try:
            self._graph.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self._graph)
            write_atomically(self._record, json.dumps(record).encode())
        except OSError:  # a full disk must not fail an export that has made its release, nor be kept full
            with contextlib.suppress(OSError):
                self._graph.unlink()


@dataclass(frozen=True)
class ReadyGraphs:
    """Graphs that may be there already.

    Attributes:
        borrowed: that of another domain, to be taken if it passes on this run's texts.
        kept: where the FP32 graph of the export before may lie, and is left for the next; None to make it anew.
    """

    borrowed: Path | None = None
    kept: KeptGraph | None = None
