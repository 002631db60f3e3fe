"""The gates: verification, the task against the live release, the time of an answer against the live release's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tritonclient import grpc

from ..candidate import candidate, sample_texts
from ..errors import GateError, ReleaseError
from ..evidence import Evidence, TaskResults
from ..releases import Release
from .latency import PAIRS, compare_latency
from .settings import GateSettings
from .task import NotComparableError, compare_task

MOST_BEGUN = 4 * PAIRS
"""Pairs of requests on a busy server, which refuses some."""
Gate = Literal["verification", "task", "latency"]


@dataclass(frozen=True)
class Finding:
    """What a gate said.

    Attributes:
        gate: which.
        passed: whether the release may go on.
        words: what was found, with numbers.
    """

    gate: Gate
    passed: bool
    words: str


class Gates:
    """Judges one release on its way to going live; what it found is kept.

    Attributes:
        findings: of all gates so far.
    """

    def __init__(self, settings: GateSettings, *, force: bool = False) -> None:
        """Take the domain's settings.

        Args:
            settings: how much worse than the live release a release may be.
            force: let the release through whatever is found; `failed` says what it was.
        """
        self._settings = settings
        self._force = force
        self.findings: list[Finding] = []

    @property
    def failed(self) -> tuple[str, ...]:
        """The gates that the release did not pass, each once."""
        return tuple(dict.fromkeys(one.gate for one in self.findings if not one.passed))

    def check_files(self, release: Release, live: Release | None) -> None:
        """Judge by what the releases bring along, before anything is touched.

        Args:
            release: which is to go live.
            live: which answers now, None if none does. It need not be on disk any more.

        Raises:
            GateError: the release did not pass, and is not forced.
            ReleaseError: its evidence is damaged.
        """
        evidence = Evidence.read(release.path)
        self._add(_verification(evidence), release)
        if live is not None:
            for finding in self._task(evidence, live):
                self._add(finding, release)

    def check_answers(self, client: grpc.InferenceServerClient, url: str, release: Release, live: Release) -> None:
        """Judge by answers, once all steps are loaded and before the switch.

        Raises:
            GateError: the release did not pass, and is not forced.
            PublishError: it cannot be loaded.
            ServerError: it does not answer.
        """
        domain = release.manifest.domain
        with candidate(client, release) as name:
            ratio, texts = self._settings.latency_ratio, sample_texts(release, PAIRS)
            found = compare_latency(url, domain, name, texts, ratio, begun=MOST_BEGUN)
        if found is None:
            words = f"release {live.number} answers too few requests to compare the time of an answer with"
            self._add(Finding("latency", True, words), release)
        else:
            self._add(Finding("latency", not found.is_over, str(found)), release)

    def _task(self, evidence: Evidence | None, live: Release) -> Iterator[Finding]:
        try:
            compared = compare_task(_results_of(live), evidence.task if evidence else None, self._settings)
        except NotComparableError as error:
            yield Finding("task", False, f"it cannot be compared with release {live.number}: {error}")
        else:
            for one in compared:
                yield Finding("task", one.passed, f"against release {live.number}, {one}")

    def _add(self, finding: Finding, release: Release) -> None:
        self.findings.append(finding)
        if not finding.passed and not self._force:
            raise GateError(
                f"release {release.number} did not pass the gate `{finding.gate}`: {finding.words}; "
                "FORCE=yes publishes it all the same"
            )


def _verification(evidence: Evidence | None) -> Finding:
    if evidence is None:
        return Finding("verification", False, "it brings no evidence of its verification: export it again")
    failed = [f"{one.graph}: {', '.join(one.failed)}" for one in evidence.verification if one.failed]
    if failed or not evidence.verification:
        return Finding("verification", False, f"its own report says that it failed ({'; '.join(failed) or 'empty'})")
    return Finding("verification", True, ", ".join(one.graph for one in evidence.verification))


def _results_of(live: Release) -> TaskResults | None:
    try:
        evidence = Evidence.read(live.path)
    except ReleaseError:
        return None
    return evidence.task if evidence else None


def summary(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding."""
    return [f"{one.gate}: {'passed' if one.passed else 'NOT PASSED'}, {one.words}" for one in findings]
