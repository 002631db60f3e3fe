"""One turn of the loop: feedback since the watermark to a derived run, a release of it, and the watermark."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feedback.errors import FeedbackError
from feedback.location import Location
from feedback.reader import FeedbackReader
from serving.canary.journal import CanaryJournal
from serving.journal import Journal
from serving.layout import Layout
from serving.line_journal import now
from serving.live_repository import LiveRepository
from serving.releases import Release, ReleaseStore
from training.config import DomainConfig
from training.derived_run import derive_run
from training.run import Run
from training.run_listing import derived_from, root_of

from .errors import ContinualError, RefusedError
from .evaluation import Comparison, Judgement, compare_heads
from .feedback_examples import Batch, FeedbackExample, collect
from .head_update import Examples, HeadWeights, choose_head, distance
from .ledger import Attempt, Ledger, Outcome, gone_back_from
from .lineage import REASON, learned_until, lineage, trained_run
from .old_skill import OldSkill, open_old_skill
from .remembered import FILE, as_bytes, with_new
from .report import REPORT, Trial, markdown
from .settings import ContinualSettings
from .turn_record import details_of, metrics_of

if TYPE_CHECKING:
    from .encoder_update import TunedEncoder

Say = Callable[[str], None]
Export = Callable[[Run, Release], Release]


@dataclass(frozen=True)
class Turn:
    """What a turn came to.

    Attributes:
        release: what was made; None if nothing was.
        line: what was done, or why nothing was made.
        waiting: a release that an earlier turn made of the very same feedback, and that was never made live.
    """

    release: Release | None
    line: str
    waiting: Release | None = None


@dataclass
class Tuner:
    """Turns feedback into releases, one turn at a time, and keeps between turns what they share.

    Attributes:
        config: the domain's config as it is now; of it, the section `continual` counts here.
        var: where all that is produced lies.
        export: makes a derived run the release after the given one.
        say: is given one line for each stage.
        read_until: the sequence number of the last event that was looked at.
    """

    config: DomainConfig
    var: Path
    export: Export
    say: Say
    read_until: int = 0
    _known: OldSkill | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Read the settings.

        Raises:
            ContinualError: the section is wrong, or does not go with the section `export`.
        """
        self.settings = ContinualSettings.read(self.config.continual)
        if self.settings.encoder != "frozen" and (borrowed := self.config.export.get("encoder_from")):
            raise ContinualError(
                f"config: continual.encoder: {self.settings.encoder} makes an encoder of {self.config.domain}'s own, "
                f"but export.encoder_from takes over that of {borrowed}; leave one of the two out"
            )
        self.layout = Layout(self.var)
        self.ledger = Ledger(self.layout.var / "continual" / f"{self.config.domain}.json")

    @property
    def refused_report(self) -> Path:
        """Where the report of the last refusal lies."""
        return self.ledger.path.with_name(f"{self.config.domain}-refused.md")

    def base(self) -> tuple[Release, Run]:
        """The release whose head is re-tuned, and its run: what is live, else the newest.

        Raises:
            ReleaseError: there is no release.
            RunError: its run is gone or damaged.
        """
        store = ReleaseStore(self.layout.releases(self.config.domain))
        live = LiveRepository(self.layout.live).live_release(self.config.domain)
        release = store.latest() if live is None else store.open(live.number)
        return release, Run.open(self.layout.var / "runs" / self.config.domain / release.manifest.run_id)

    def watermark(self, run: Run) -> int:
        """Up to where feedback counts as learned, if `run` is what is live."""
        publications = Journal(self.layout.journal(self.config.domain)).publications()
        ids, root = lineage(run), root_of(run)
        passed = gone_back_from(publications)
        if root not in ids:  # a run between is gone: this one may have been derived of whatever went live
            passed = {publication.release for publication in publications}
        return self.ledger.watermark(learned_until(run), ids, root, passed)

    def prepare(self) -> None:
        """Load what a turn needs, before there is feedback.

        Raises:
            ServingError: there is no release to start from.
            RunError: its run cannot be read.
            ExportError: its graph cannot be read or run.
        """
        release, run = self.base()
        self._skill(run, release).encoder.embed(["warm up"])  # past the cache: the graph is to be opened
        self.read_until = self.watermark(run)

    def turn(self, since: int | None = None) -> Turn:
        """Tune once.

        Args:
            since: reads feedback from after this sequence number on, whatever was learned before, and remembers it.

        Raises:
            RefusedError: the new head is not good enough.
            ContinualError: there is no feedback store, or it is not the one that was learned from.
            ServingError: there is no release to start from, or none can be made.
            RunError: the run cannot be read or written.
            TrainingError: the encoder cannot be tuned.
            ExportError: the release's graph cannot be read or run, or no release can be made.
        """
        release, run = self.base()
        try:
            with FeedbackReader(Location.below(self.layout.var)) as reader:
                since = self._since(reader, run, since)
                skill = self._skill(run, release)
                events = itertools.islice(reader.events(self.config.domain, after=since), self.settings.max_events)
                batch = collect(events, skill.label_of_item(), self.settings)
        except FeedbackError as error:
            raise ContinualError(str(error)) from None
        self.read_until = batch.until or since
        if batch.until is None:
            return Turn(None, f"no feedback since event {since}: nothing to learn")
        known = self.ledger.same(run.run_id, since, batch.until, self.settings.fingerprint, batch.digest)
        if known is not None and (turn := self._done_before(known, release, run, batch)):
            return turn
        unused = ", ".join(f"{count} {why}" for why, count in batch.unused.items())
        self.say(
            f"feedback: {batch.read} events after event {since}, {len(batch.taught)} to learn from, "
            f"{len(batch.held_out)} held out ({unused or 'all used'})"
        )
        if not batch.taught:
            return self._nothing_usable(run, since, batch)
        return self._release(skill, self._tried(skill, batch, since))

    def _tried(self, skill: OldSkill, batch: Batch, since: int) -> Trial:
        settings = self.settings
        encoder = self._encoder(skill, batch)
        new = skill if encoder is None else encoder.skill
        live_taught, live_held_out = (_examples(skill, part) for part in (batch.taught, batch.held_out))
        taught, held_out = live_taught, live_held_out
        if encoder is not None:
            taught, held_out = (_examples(new, part) for part in (batch.taught, batch.held_out))
        chosen = choose_head(
            skill.head,
            taught,
            new.replay,
            [new.validation, held_out if len(held_out) else taught],
            settings.anchors,
            settings.replay_ratio,
        )
        head = chosen.head

        def compared(before: Examples, after: Examples, old: HeadWeights = skill.head) -> Comparison:
            return compare_heads(old, head, before, settings.seed, after.vectors)

        if trained_run(skill.run) is None:
            self.say(f"nothing is held against drift_budget: the trained run {root_of(skill.run)} is gone")
        untaught = Comparison(0) if skill.trained is None else compared(skill.judged_on, new.judged_on, skill.trained)

        trial = Trial(
            base_run=skill.run.run_id,
            base_release=skill.release.number,
            since=since,
            batch=batch,
            head=head,
            anchor=chosen.anchor,
            replayed=len(new.replay),
            moved=distance(head, skill.head),
            judgement=Judgement(
                old=compared(skill.judged_on, new.judged_on),
                earlier=compared(skill.feedback, new.feedback),
                new=compared(live_held_out, held_out),
                trained=untaught,
            ),
            taught=compared(live_taught, taught),
            encoder=encoder,
        )
        self.say(f"head: moved by {100 * trial.moved:.1f} % of its length; old: {trial.judgement.old.described()}")
        self.say(f"new: {trial.judgement.new.described()}")
        return trial

    def _encoder(self, skill: OldSkill, batch: Batch) -> TunedEncoder | None:
        if self.settings.encoder == "frozen":
            return None
        from .encoder_update import tune_near_live  # noqa: PLC0415 - loads torch, peft and the Trainer

        return tune_near_live(skill, batch, self.settings, self.layout.var, self.say)

    def _release(self, skill: OldSkill, trial: Trial) -> Turn:
        settings, until, encoder = self.settings, trial.until, trial.encoder
        reason = trial.judgement.reason_against(settings.budget, settings.drift_budget)
        report = markdown(trial, settings, reason)
        if reason:
            self._remember("refused", skill.run, trial.since, until, digest=trial.batch.digest, reason=reason)
            kept_at = self._kept(report)
            if encoder is not None:
                encoder.forget(vectors=True)
            next_time = f"More feedback is tried together with this; to leave it out: SINCE={until}"
            if self._is_full(trial.batch):
                self._leave_behind(skill.run, until, reason)
                next_time = f"These {trial.batch.read} events are left behind (continual.max_events)"
            raise RefusedError(
                f"refused: {reason}; release {skill.release.number} stays as it is. {next_time} ({kept_at})"
            )
        run = self._derived(skill, trial) or derive_run(
            skill.run,
            self.layout.var,
            reason=REASON,
            encoder=None if encoder is None else encoder.source,
            head=(trial.head.weight, trial.head.bias),
            catalogue=None if encoder is None else skill.items,
            item_vectors=None if encoder is None else encoder.item_vectors(),
            # Of people's events: those of the few items that have none are still as the old encoder read their texts.
            history_vectors=None if encoder is None else skill.run.history_vectors(),
            metrics=metrics_of(skill if encoder is None else encoder.skill, trial),
            details=details_of(trial),
            extra_files={
                REPORT: report.encode(),
                FILE: as_bytes(with_new(skill.remembered, trial.batch.examples, settings.remembered)),
            },
        )
        release = self.export(run, skill.release)
        # Only now: whoever is killed before this repeats the turn, and makes the same of the same.
        self._remember(
            "released",
            skill.run,
            trial.since,
            until,
            digest=trial.batch.digest,
            run_id=run.run_id,
            release=release.number,
        )
        if encoder is not None:
            encoder.forget(vectors=False)
        return Turn(release, f"release {release.number} has learned from {len(trial.batch.taught)} events")

    def _kept(self, report: str) -> str:
        """Where the report of a refusal lies; the refusal stands where it cannot be written."""
        try:
            self.refused_report.write_text(report, encoding="utf-8")
        except OSError as error:
            return f"{self.refused_report} cannot be written: {error.strerror or error}"
        return str(self.refused_report)

    def _derived(self, skill: OldSkill, trial: Trial) -> Run | None:
        """The run of this very turn, if it was killed after writing it."""
        for run in derived_from(skill.run, self.layout.var / "runs" / self.config.domain):
            origin = run.manifest.derived_from
            if origin is None or origin.run_id != skill.run.run_id or origin.reason != REASON:
                continue
            read = (trial.since, trial.until, trial.batch.digest)
            if tuple(origin.details.get(name) for name in ("since", "until", "digest")) == read:
                weight, bias = run.head()
                encoder = skill.run.encoder if trial.encoder is None else trial.encoder.source
                same_head = np.array_equal(weight, trial.head.weight) and np.array_equal(bias, trial.head.bias)
                if same_head and run.encoder.sha256 == encoder.sha256:
                    return run
        return None

    def _done_before(self, attempt: Attempt, base: Release, run: Run, batch: Batch) -> Turn | None:
        """What became of an attempt that the same feedback would only repeat; None if it is to be made again."""
        if attempt.outcome == "released":
            store = ReleaseStore(self.layout.releases(self.config.domain))
            if attempt.release is None or attempt.release not in store.numbers():
                return None
            made = store.open(attempt.release)
            if self._made_after(made) != base.number:  # as another release of the same run was exported
                return None
            line = f"no feedback since event {attempt.until}, which release {attempt.release} has learned"
            # One that was tried as a canary is not live because of what that showed, or is being tried still.
            tried = {one.release for one in CanaryJournal(self.layout.canary_journal(self.config.domain)).events()}
            return Turn(None, line, waiting=None if made.number in tried else made)
        if self._is_full(batch):
            self._leave_behind(run, attempt.until, attempt.reason or "")
            return Turn(None, f"nothing came of {batch.read} events ({attempt.reason}); left behind")
        return Turn(None, f"no feedback since event {attempt.until}, up to which nothing came of it: {attempt.reason}")

    def _made_after(self, release: Release) -> int | None:
        """The release whose head this one's was started from."""
        path = self.layout.var / "runs" / self.config.domain / release.manifest.run_id
        origin = Run.open(path).manifest.derived_from if path.is_dir() else None
        return None if origin is None else origin.details.get("base_release")

    def _nothing_usable(self, run: Run, since: int, batch: Batch) -> Turn:
        until = batch.until or since
        reasons = ", ".join(f"{count} {why}" for why, count in batch.unused.items()) or "all of it is held out"
        if self._is_full(batch):
            self._leave_behind(run, until, reasons)
            return Turn(None, f"nothing to learn in {batch.read} events ({reasons}); left behind")
        self._remember("nothing usable", run, since, until, digest=batch.digest, reason=reasons)
        return Turn(None, f"nothing to learn yet ({reasons}); kept for the next time")

    def _is_full(self, batch: Batch) -> bool:
        """Whether the next turn would read the very same events again, whatever has come since."""
        return batch.read >= self.settings.max_events

    def _leave_behind(self, run: Run, until: int, reason: str) -> None:
        self._remember("set", run, until, until, reason=reason)

    def _skill(self, run: Run, release: Release) -> OldSkill:
        known = self._known
        if known is None or known.run.run_id != run.run_id or known.release.number != release.number:
            known = open_old_skill(run, release, self.layout.var, self.settings)
            self._known = known
        return known

    def _since(self, reader: FeedbackReader, run: Run, wanted: int | None) -> int:
        """From where to read: the watermark, or what a person wants, which is remembered."""
        newest = reader.watermark()
        if wanted is not None:
            if wanted > newest:
                raise ContinualError(f"SINCE={wanted}: the feedback store ends with event {newest}")
            self._remember("set", run, wanted, wanted)
        since = self.watermark(run)
        if since > newest:
            raise ContinualError(
                f"feedback up to event {since} is learned, but the store ends with event {newest}: was it replaced? "
                "SINCE=0 begins with this one"
            )
        return since

    def _remember(self, outcome: Outcome, run: Run, since: int, until: int, **more: Any) -> None:
        self.ledger.add(
            Attempt(
                at=now(),
                outcome=outcome,
                base_run=run.run_id,
                root=root_of(run),
                since=since,
                until=until,
                settings=self.settings.fingerprint,
                **more,
            )
        )


def _examples(skill: OldSkill, examples: Sequence[FeedbackExample]) -> Examples:
    vectors = skill.embed([one.text for one in examples])
    return Examples(
        vectors, skill.label_ids([one.label for one in examples]), np.array([one.weight for one in examples])
    )
