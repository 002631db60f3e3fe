"""What is left of a run: report.json for machines, report.md for people, report.html from Locust."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.closed_loop import HTML_FILE, SUMMARY_FILE, ClosedLoop
from loadtest.errors import LoadTestError
from loadtest.sla import Sla, Verdict
from loadtest.summary import OpenLoopSummary, Summary

__all__ = ["Report", "criteria_table", "failures", "report_folder", "warnings", "write_report"]

BUSY = 0.9
"""Of a core; Locust calls its own process overloaded from there on, too."""
FAILURES_SHOWN = 5
"""Of each load, the most frequent; messages may differ in a number alone."""


class Report(BaseModel):
    """One run: what was asked for, what was measured, and the verdict.

    Attributes:
        schema_version: Of this layout.
        created: When the run began, with its time zone.
        settings: The closed-loop load.
        expected_release: The release whose instructions were asked; None where they are of no release.
        sla: The bars.
        closed_loop: What the closed loop measured.
        closed_loop_verdict: The bars against that.
        open_loop: What the open loop measured, if it ran.
        open_loop_verdict: The bars against that, throughput left out: the rate was given.
        met: Whether every criterion was met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    created: datetime
    settings: ClosedLoop
    expected_release: str | None = None
    sla: Sla
    closed_loop: Summary
    closed_loop_verdict: Verdict
    open_loop: OpenLoopSummary | None
    open_loop_verdict: Verdict | None
    met: bool


@contextmanager
def report_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `target` at the end, and vanishes after an error.

    Raises:
        LoadTestError: `target` exists, another run is about to write it, or it or what is in it cannot be written.
    """
    there = LoadTestError(f"{target}: is there already: name another folder with --output-dir, or wait a second")
    folder = target.with_name(f".{target.name}")  # claims the name: two runs may have begun in one second
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise there from None
    except OSError as error:
        raise LoadTestError(f"{target}: cannot write there: {error.strerror}") from error
    try:
        if target.exists():
            raise there
        yield folder
        folder.replace(target)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise LoadTestError(f"{target}: {error}") from error
        raise


def write_report(report: Report, folder: Path) -> None:
    """Write report.json and report.md beside Locust's report.html."""
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    (folder / SUMMARY_FILE).unlink(missing_ok=True)  # it is part of report.json


def criteria_table(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Return the criteria as rows of text: load, criterion, bar, measured, result; the first row is the heading."""
    rows = [("load", "criterion", "bar", "measured", "result")]
    for load, verdict in (("closed loop", report.closed_loop_verdict), ("open loop", report.open_loop_verdict)):
        rows += [
            (
                load,
                criterion.name,
                f"{criterion.side} {criterion.bar:g}",
                "no answer" if criterion.measured is None else f"{criterion.measured:.4g}",
                "met" if criterion.met else "missed",
            )
            for criterion in (verdict.criteria if verdict else ())
        ]
    return rows


def warnings(report: Report) -> list[str]:
    """Return what makes a run's figures doubtful, one line each."""
    found = []
    for load, summary in _loads(report):
        if summary.asking > BUSY:
            found.append(
                f"{load}: the load test itself was busy for {summary.asking:.0%} of a core: it may be what was "
                "measured, not the server"
            )
        answered = ", ".join(f"{release} ({count} times)" for release, count in sorted(summary.releases.items()))
        if report.expected_release is not None and summary.releases.keys() - {report.expected_release}:
            found.append(
                f"{load}: answered by release {answered}, where release {report.expected_release} was to be measured: "
                "look which one is live"
            )
        elif len(summary.releases) > 1:
            found.append(f"{load}: answered by releases {answered}: the figures are of all of them together")
    return found


def failures(report: Report) -> list[tuple[str, str, int]]:
    """Return what went wrong most often: load, reason, and how many requests; the rest of a load as one reason."""
    found = []
    for load, summary in _loads(report):
        reasons = sorted(summary.errors.items(), key=lambda reason: -reason[1])
        found += [(load, reason, count) for reason, count in reasons[:FAILURES_SHOWN]]
        rest = reasons[FAILURES_SHOWN:]
        if rest:
            found.append((load, f"{len(rest)} other reasons, in report.json", sum(count for _, count in rest)))
    return found


def _loads(report: Report) -> list[tuple[str, Summary]]:
    opened = [("open loop", report.open_loop)] if report.open_loop else []
    return [("closed loop", report.closed_loop), *opened]


def _markdown(report: Report) -> str:
    settings = report.settings
    lines = [
        f"# Load test of {settings.domain}: SLA {'met' if report.met else 'missed'}",
        "",
        f"{report.created:%Y-%m-%d %H:%M:%S %Z}, {settings.url}: {settings.users} users, "
        f"{settings.spawn_rate:g} more each second, then {settings.duration_s:g} s that count, "
        f"{settings.k} items a request.",
        "",
        *_markdown_table(criteria_table(report)),
        "",
        *(f"Beware: {warning}.\n" for warning in warnings(report)),
        "## Measured",
        "",
        *_markdown_table(_measured_table(report)),
        "",
        f"Latencies are of right answers. [Locust's report]({HTML_FILE}) has the course of the closed loop.",
    ]
    failed = [(load, reason, str(count)) for load, reason, count in failures(report)]
    if failed:
        lines += ["", "## Failures", "", *_markdown_table([("load", "what went wrong", "requests"), *failed])]
    return "\n".join(lines) + "\n"


def _measured_table(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("load", "requests", "failed", "a second", "p50 ms", "p95 ms", "p99 ms", "max ms", "asking core", "release")
    ]
    for load, summary in _loads(report):
        quantiles = (summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms)
        rows.append(
            (
                load
                if not isinstance(summary, OpenLoopSummary)
                else f"{load}, {summary.rate:g}/s, {summary.late} late",
                str(summary.requests),
                str(summary.failures),
                f"{summary.requests_per_second:.1f}",
                *("–" if value is None else f"{value:.2f}" for value in quantiles),
                f"{summary.asking:.2f}",
                ", ".join(summary.releases) or "–",
            )
        )
    return rows


def _markdown_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    heading, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [heading, "|" + "---|" * len(rows[0]), *body]
