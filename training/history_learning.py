"""What training learns from interactions: the priors and behaviour vectors of now, and examples of what came next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.config import DomainConfig
from training.dataset import Dataset
from training.event_log import EventLog
from training.history import HistoryExample, history_examples
from training.history_evaluation import leave_last_out
from training.metrics import ranking_metrics
from training.ranking import RankingExamples
from training.ranking_examples import of_people
from training.score import CatalogueSide, ScoreWeights, Vectors
from training.timeline import Learned, Timeline


@dataclass(frozen=True)
class Histories:
    """People's last events, oldest first, and `catalogue`, the items as all events together show them.

    `known_before` makes people's last events as they were at a time.
    """

    people: tuple[HistoryExample, ...]
    timeline: Timeline
    learned: Learned
    catalogue: CatalogueSide
    has_prior: bool
    known_before: Callable[[float], list[HistoryExample]]

    @property
    def fitting(self) -> list[HistoryExample]:
        """The people whose events the weights are fitted on."""
        return [person for person in self.people if not person.held_out]

    @property
    def held_out(self) -> list[HistoryExample]:
        """The people whose events are measured alone."""
        return [person for person in self.people if person.held_out]

    @property
    def vectors(self) -> Vectors | None:
        """The history vectors of now, float32 [N, D]; None where histories are read by the items' text."""
        return None if self.timeline.settings.vectors == "text" else self.catalogue.history_vectors

    def states(self, people: Sequence[HistoryExample]) -> list[CatalogueSide] | None:
        """The catalogue as it was known before each person's last event; None where time changes nothing."""
        return self.timeline.states(people, self.learned)

    def with_priors(self, dataset: Dataset) -> Dataset:
        """The dataset with the priors that were learned, if any were."""
        if self.learned.prior is None:
            return dataset
        priors = self.catalogue.priors.tolist()
        items = tuple(replace(item, prior=prior) for item, prior in zip(dataset.items, priors, strict=True))
        return replace(dataset, items=items)


def learn_histories(
    config: DomainConfig, dataset: Dataset, catalogue: CatalogueSide, say: Callable[[str], None]
) -> Histories:
    """Learn as the config's `history` section says, from the people who are not held out."""
    settings = config.history
    row_of_item = {item.item_id: row for row, item in enumerate(dataset.items)}

    def known_before(time: float) -> list[HistoryExample]:
        earlier = (event for event in dataset.interactions if event.timestamp < time)
        longest, exclude_seen = config.training.max_history, settings.exclude_seen
        return history_examples(earlier, row_of_item, longest, exclude_seen=exclude_seen)

    people = known_before(np.inf)
    released = np.array([np.nan if item.released is None else item.released for item in dataset.items])
    timeline = Timeline(EventLog.of(dataset.interactions, row_of_item), catalogue, settings, released)
    if settings.prior == "recency" or settings.vectors == "behaviour":
        people.sort(key=lambda person: person.time)
        say(f"histories: {len(people):,} people, a refresh every {settings.refresh_days:g} days")
    learned = timeline.learn([person for person in people if not person.held_out], config.training.seed)
    now = timeline.state(timeline.log.now, learned)
    has_prior = (dataset.has_prior or learned.prior is not None) and bool(now.priors.any())
    return Histories(tuple(people), timeline, learned, now, has_prior, known_before)


def measure_histories(
    histories: Histories, queries: RankingExamples, weights: ScoreWeights, seed: int
) -> dict[str, Any]:
    """The metrics of histories: with the released weights on held-out people, and leaving the last event out of all.

    `ranking` gives each held-out person an instruction of `queries` that their last item answers, where there is one;
    `leave_last_out` has no instructions at all.
    """
    held_out = histories.held_out
    examples = of_people(held_out, queries, histories.states(held_out))
    without = weights.model_copy(update={"gamma": 0.0})
    return {
        "people_fitted": len(histories.fitting),
        "people_held_out": len(held_out),
        "ranking": ranking_metrics(examples, histories.catalogue, weights),
        "ranking_without_history": ranking_metrics(examples, histories.catalogue, without),
        "leave_last_out": leave_last_out(histories.timeline, histories.people, histories.known_before, seed),
    }
