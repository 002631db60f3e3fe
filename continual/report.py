"""The page that says what one turn learned from, what it left out, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .evaluation import Comparison, Judgement
from .feedback_examples import Batch
from .head_update import Anchor, HeadWeights
from .settings import ContinualSettings

if TYPE_CHECKING:
    from .encoder_update import TunedEncoder

REPORT = "continual.md"
"""Its name in the folder of a derived run."""


@dataclass(frozen=True)
class Trial:
    """A new head, what it was made of, and how it compares.

    Attributes:
        base_run, base_release: whose head it started from.
        since: the watermark that the feedback was read from.
        batch: the feedback.
        head: the new head.
        anchor: what held it.
        replayed: old examples that were learned again.
        moved: how far it is from the old head, as a share of that one's length.
        judgement: accuracy before and after on what was held out.
        taught: accuracy before and after on the feedback that was learned from.
        encoder: the new encoder; None where it is the live one.
    """

    base_run: str
    base_release: int
    since: int
    batch: Batch
    head: HeadWeights
    anchor: Anchor
    replayed: int
    moved: float
    judgement: Judgement
    taught: Comparison
    encoder: TunedEncoder | None = None

    @property
    def until(self) -> int:
        """The sequence number of the last event that was read."""
        return self.batch.until or self.since


def markdown(trial: Trial, settings: ContinualSettings, reason: str | None) -> str:
    """The page; it holds no one's words.

    Args:
        trial: the new head.
        settings: what it was tuned with.
        reason: why it was refused; None if it was taken.
    """
    batch, judged = trial.batch, trial.judgement
    lines = [
        "# Continual tuning",
        "",
        f"**{f'Refused: {reason}' if reason else 'Taken'}.** Started from release {trial.base_release} "
        f"(run {trial.base_run}), feedback after event {trial.since} up to event {trial.until}.",
        "",
        "| top-1 accuracy | before | after | change in points (95 %) | n |",
        "|---|---|---|---|---|",
        _row("old held-out instructions", judged.old),
        _row("the same, since the training", judged.trained),
        _row("earlier held-out feedback", judged.earlier),
        _row("held-out feedback", judged.new),
        _row("feedback learned from", trial.taught),
        "",
        f"The head moved by {100 * trial.moved:.2f} % of its length. Replayed: {trial.replayed:,} old examples, at "
        f"least {settings.replay_ratio:g} times the weight of the new ones. Penalty {trial.anchor.penalty:g}, "
        f"distillation {trial.anchor.distillation:g}, budget {settings.budget:g} points, "
        f"and {settings.drift_budget:g} since the training.",
        "",
        *_of_encoder(trial),
        "## What was used",
        "",
        f"Of {batch.read:,} events, {len(batch.taught):,} were learned from and {len(batch.held_out):,} measured on. "
        f"{batch.capped:,} people's weight was cut to {settings.person_weight:g} "
        f"(all without a user id together: {settings.anonymous_weight:g}).",
        "",
        "| not used | events |",
        "|---|---|",
        *(f"| {why} | {count:,} |" for why, count in sorted(batch.unused.items())),
        "",
        f"A label needs {settings.label_events} events of {settings.label_people} people.",
        "",
        "| label | events | people | used |",
        "|---|---|---|---|",
        *(
            f"| {label.replace('|', '/')} | {count.events:,} | {count.people:,} | {'yes' if count.used else 'no'} |"
            for label, count in batch.labels.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _of_encoder(trial: Trial) -> list[str]:
    if trial.encoder is None:
        return []
    record = trial.encoder.record
    return [
        f"The encoder was re-tuned too ({record.method}, {record.trained:,} of {record.parameters:,} parameters, best "
        f"at step {record.best_step} of {record.steps}): what is after is measured on the new encoder's vectors.",
        "",
    ]


def _row(name: str, comparison: Comparison) -> str:
    if comparison.before is None or comparison.after is None or comparison.change is None:
        return f"| {name} | | | | 0 |"
    change = comparison.change
    return (
        f"| {name} | {100 * comparison.before:.1f} % | {100 * comparison.after:.1f} % | "
        f"{change.value:+.1f} ({change.low:+.1f} to {change.high:+.1f}) | {comparison.examples:,} |"
    )
