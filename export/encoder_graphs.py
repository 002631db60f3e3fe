"""What an encoder is in a release, once it is verified: its graph, its tokenizer and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.report import Check, VerificationReport
from serving.manifest import EncoderOrigin

if TYPE_CHECKING:
    from export.tensorrt.engine import EngineFile

__all__ = ["EncoderGraphs"]


@dataclass(frozen=True)
class EncoderGraphs:
    """A verified encoder.

    Attributes:
        path: the ONNX file, in a folder of the caller's.
        buckets: the lengths it is served at.
        hidden_size: width H of its output.
        tokenizer: the file of the tokenizer that belongs to it.
        reports: the FP32 graph's, then those of the INT8 recipes in the order they were tried; the last one passed. Of
            a graph that an earlier release has too, its own alone.
        item_checks: that the run's item vectors are this encoder's.
        origin: what it was made of, and where it was held against torch first.
        engine: built of that graph on this machine, for TensorRT precisions.
        taken_from: the release that it was taken over from; None for a new one.
        fp32: the FP32 graph that it was made of, in the same folder, and that one's reports; None where none was made.
    """

    path: Path
    buckets: tuple[int, ...]
    hidden_size: int
    tokenizer: Path
    reports: tuple[VerificationReport, ...]
    item_checks: tuple[Check, ...]
    origin: EncoderOrigin
    engine: EngineFile | None = None
    taken_from: int | None = None
    fp32: tuple[Path, tuple[VerificationReport, ...]] | None = None

    def markdown(self) -> str:
        """All reports as one Markdown page."""
        taken = (
            f"The encoder graph is that of release {self.taken_from}. What only the graph decides was measured then; "
            "the rest was measured for this release.\n\n"
        )
        reports = "\n".join(report.markdown() for report in self.reports)
        return f"# Verification against torch\n\n{taken if self.taken_from else ''}{reports}"

    def checks(self) -> dict[str, Any]:
        """The figures of all reports, by graph, for the manifest."""
        return {report.graph: {check.name: check.measured for check in report.checks} for report in self.reports}
