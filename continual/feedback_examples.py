"""From events to labelled examples: what counts, how much, and what was left out for which reason.

Whoever reaches the server can send feedback. So one person's say is bounded, a label needs several people, and every
event that is not used is counted under a reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from feedback.reader import StoredEvent

from .settings import ContinualSettings

IMPRESSION = "impressions"
LOW_RATING = "ratings below the positive one"
NO_WEIGHT = "kinds of event that weigh nothing"
NO_INSTRUCTION = "without an instruction"
UNKNOWN_ITEM = "of items that the catalogue lacks"
REPEATED = "the same person, words and label once more"
TOO_FEW = "of labels with too few events or people"


@dataclass(frozen=True)
class FeedbackExample:
    """A person's words, and the label of what they took for them.

    Attributes:
        sequence: the event's number in the store.
        text: the words.
        label: the item's label.
        weight: what it counts; above 0.
        person: their keyed hash, None for nobody in particular.
        held_out: whether it is measured on instead of learned from.
    """

    sequence: int
    text: str
    label: str
    weight: float
    person: str | None
    held_out: bool = False


@dataclass(frozen=True)
class LabelCount:
    """What a batch says for one label; `used` tells whether it was enough."""

    events: int
    people: int
    used: bool


@dataclass(frozen=True)
class Batch:
    """What a stretch of feedback came to.

    Attributes:
        read: events in all.
        until: the sequence number of the last one; None if there was none.
        digest: of all their sequence numbers: tells whether some were erased since.
        examples: what is learned from or measured on.
        unused: events by the reason why they are not used.
        labels: by label.
        capped: people whose weight was cut.
    """

    read: int
    until: int | None
    digest: str
    examples: tuple[FeedbackExample, ...]
    unused: Mapping[str, int]
    labels: Mapping[str, LabelCount]
    capped: int

    @property
    def taught(self) -> list[FeedbackExample]:
        """The examples to learn from."""
        return [example for example in self.examples if not example.held_out]

    @property
    def held_out(self) -> list[FeedbackExample]:
        """The examples to measure on."""
        return [example for example in self.examples if example.held_out]


def collect(events: Iterable[StoredEvent], label_of_item: Mapping[str, str], settings: ContinualSettings) -> Batch:
    """Make events into examples.

    Args:
        events: of one domain, in the order of the store.
        label_of_item: the catalogue's labels.
        settings: what counts.
    """
    unused: Counter[str] = Counter()
    kept: dict[tuple[str, str, str], FeedbackExample] = {}
    read, until, digest = 0, None, hashlib.sha256()
    for event in events:
        read, until = read + 1, event.sequence
        digest.update(f"{until} ".encode())
        reason = _reason_against(event, label_of_item, settings)
        if reason:
            unused[reason] += 1
            continue
        example = FeedbackExample(
            sequence=event.sequence,
            text=event.instruction,
            label=label_of_item[event.item_id],
            weight=float(getattr(settings.weights, event.event)),
            person=event.user_hash,
        )
        # Nobody in particular may be many people: each of their events stands for itself, and all share one bound.
        key = (_identity(example), _normal(example.text), example.label)
        known = kept.get(key)
        if known is not None:
            unused[REPEATED] += 1
            example = replace(known, weight=max(known.weight, example.weight))
        kept[key] = example
    examples, labels = _with_enough(list(kept.values()), settings)
    if left_out := len(kept) - len(examples):
        unused[TOO_FEW] += left_out
    examples, capped = _bounded(examples, settings)
    return Batch(
        read=read,
        until=until,
        digest=digest.hexdigest()[:16],
        examples=tuple(replace(one, held_out=_is_held_out(_identity(one), settings.held_out)) for one in examples),
        unused=dict(unused),
        labels=labels,
        capped=capped,
    )


def _reason_against(event: StoredEvent, labels: Mapping[str, str], settings: ContinualSettings) -> str | None:
    if event.event == "impression":
        return IMPRESSION
    if event.event == "rating" and event.value < settings.positive_rating:
        return LOW_RATING
    if not getattr(settings.weights, event.event, 0):
        return NO_WEIGHT
    if not event.instruction.strip():
        return NO_INSTRUCTION
    if event.item_id not in labels:
        return UNKNOWN_ITEM
    return None


def _with_enough(
    examples: list[FeedbackExample], settings: ContinualSettings
) -> tuple[list[FeedbackExample], dict[str, LabelCount]]:
    of_label: dict[str, list[FeedbackExample]] = defaultdict(list)
    for example in examples:
        of_label[example.label].append(example)
    labels = {}
    for label, said in sorted(of_label.items()):
        people = len({one.person for one in said})
        used = len(said) >= settings.label_events and people >= settings.label_people
        labels[label] = LabelCount(len(said), people, used)
    return [one for one in examples if labels[one.label].used], labels


def _bounded(examples: list[FeedbackExample], settings: ContinualSettings) -> tuple[list[FeedbackExample], int]:
    """The same examples, none of whose people weighs more than allowed; and how many people were cut."""
    totals: dict[str | None, float] = defaultdict(float)
    for example in examples:
        totals[example.person] += example.weight
    limits = {one: settings.person_weight if one else settings.anonymous_weight for one in totals}
    factors = {one: min(1.0, limits[one] / total) for one, total in totals.items()}
    cut = sum(factor < 1 for factor in factors.values())
    return [replace(one, weight=one.weight * factors[one.person]) for one in examples], cut


def _identity(example: FeedbackExample) -> str:
    return example.person or f"event {example.sequence}"


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _is_held_out(identity: str, share: float) -> bool:
    """The same for a person whenever it is asked, so that nobody is learned from in one batch and measured in one."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
