"""What was known of the items at each refresh, and what is known now."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.behaviour import behaviour_vectors
from training.event_log import EventLog, Floats
from training.history import HistoryExample
from training.history_config import HistoryConfig
from training.priors import ItemFeatures, RecencyModel, fit_recency, item_features
from training.score import CatalogueSide, Vectors
from training.taste import TasteModel, fit_taste


@dataclass(frozen=True)
class Learned:
    """What people's choices taught; None where the config asks for no such thing."""

    prior: RecencyModel | None = None
    taste: TasteModel | None = None


class Timeline:
    """Makes the catalogue as a service had known it that is refreshed every `refresh_days`, from earlier events alone.

    Features and behaviour vectors of a refresh are made once and kept.
    """

    def __init__(
        self, log: EventLog, catalogue: CatalogueSide, settings: HistoryConfig, released: Floats | None = None
    ) -> None:
        """`catalogue` has the priors of its own column, and no behaviour vectors; `released` [N] is NaN for unknown."""
        self.log = log
        self.catalogue = catalogue
        self.settings = settings
        self.released = released
        self._features: dict[float, ItemFeatures] = {}
        self._behaviour: dict[float, Vectors] = {}

    def refresh(self, example: HistoryExample) -> float:
        """The time of the newest refresh before an example's target."""
        return self.log.last_refresh(example.time, self.settings.refresh_days)

    def by_refresh(self, examples: Iterable[HistoryExample]) -> dict[float, list[HistoryExample]]:
        """The examples by their refresh, oldest first."""
        groups: dict[float, list[HistoryExample]] = {}
        for example in examples:
            groups.setdefault(self.refresh(example), []).append(example)
        return dict(sorted(groups.items()))

    def features(self, time: float) -> ItemFeatures:
        """What is known at `time` of how often and how lately items were chosen."""
        if time not in self._features:
            self._features[time] = item_features(self.log, time, self.released)
        return self._features[time]

    def learn(self, examples: Iterable[HistoryExample], seed: int) -> Learned:
        """What `examples` teach of the prior and of taste, each seen with its own refresh."""
        if self.settings.prior != "recency":
            return Learned()
        groups = [(self.features(time), time, own) for time, own in self.by_refresh(examples).items()]
        prior = fit_recency([(features, own) for features, _, own in groups], seed)
        if not self.settings.taste:
            return Learned(prior)
        known = [(features, self.behaviour(time), own) for features, time, own in groups if features.has_events]
        taste = fit_taste(known, prior, seed)
        return Learned(taste.prior, taste)

    def state(self, time: float, learned: Learned) -> CatalogueSide:
        """The catalogue with the priors and the history vectors of `time`."""
        priors = self.catalogue.priors
        if learned.prior is not None:
            priors = learned.prior.priors(self.features(time))
        if self.settings.vectors == "text":
            return self.catalogue.at(priors, None)
        vectors = self.behaviour(time)
        if learned.taste is not None:
            vectors = learned.taste.history_vectors(self.features(time), vectors)
        return self.catalogue.at(priors, vectors)

    def states(self, examples: Sequence[HistoryExample], learned: Learned) -> list[CatalogueSide] | None:
        """The state of each example's refresh; None where nothing of the catalogue depends on the time."""
        if learned.prior is None and self.settings.vectors == "text":
            return None
        made = {time: self.state(time, learned) for time in self.by_refresh(examples)}
        return [made[self.refresh(example)] for example in examples]

    def behaviour(self, time: float) -> Vectors:
        """The behaviour vectors of `time`, float32 [N, D]."""
        if time not in self._behaviour:
            self._behaviour[time] = behaviour_vectors(self.log, time, self.catalogue.vectors, self.settings)
        return self._behaviour[time]
