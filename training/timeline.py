"""What was known of the items at each refresh, and what is known now."""

from collections.abc import Iterable, Sequence

from training.behaviour import behaviour_vectors
from training.event_log import EventLog
from training.history import HistoryExample
from training.history_config import HistoryConfig
from training.priors import RecencyFeatures, RecencyModel, fit_recency, recency_features
from training.score import CatalogueSide, Vectors


class Timeline:
    """Makes the catalogue as a service had known it that is refreshed every `refresh_days`, from earlier events alone.

    Features and behaviour vectors of a refresh are made once and kept.
    """

    def __init__(self, log: EventLog, catalogue: CatalogueSide, settings: HistoryConfig) -> None:
        """`catalogue` has the priors of the catalogue's own column, and no behaviour vectors."""
        self.log = log
        self.catalogue = catalogue
        self.settings = settings
        self._features: dict[float, RecencyFeatures] = {}
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

    def features(self, time: float) -> RecencyFeatures:
        """What is known at `time` of how often and how lately items were chosen."""
        if time not in self._features:
            self._features[time] = recency_features(self.log, time)
        return self._features[time]

    def fit_prior(self, examples: Iterable[HistoryExample], seed: int) -> RecencyModel | None:
        """The blend of recency that `examples` teach, each seen with its own refresh; None if the config has none."""
        if self.settings.prior != "recency":
            return None
        groups = [(self.features(time), own) for time, own in self.by_refresh(examples).items()]
        return fit_recency(groups, self.log.item_count, seed)

    def state(self, time: float, model: RecencyModel | None) -> CatalogueSide:
        """The catalogue with the priors and the behaviour vectors of `time`."""
        priors = self.catalogue.priors
        if model is not None:
            priors = model.priors(self.features(time), self.log.item_count)
        return self.catalogue.at(priors, self.history_vectors(time))

    def states(self, examples: Sequence[HistoryExample], model: RecencyModel | None) -> list[CatalogueSide] | None:
        """The state of each example's refresh; None where nothing of the catalogue depends on the time."""
        if model is None and self.settings.vectors == "text":
            return None
        made = {time: self.state(time, model) for time in self.by_refresh(examples)}
        return [made[self.refresh(example)] for example in examples]

    def history_vectors(self, time: float) -> Vectors | None:
        """The behaviour vectors of `time`, float32 [N, D]; None where histories are read by the items' text."""
        if self.settings.vectors == "text":
            return None
        if time not in self._behaviour:
            self._behaviour[time] = behaviour_vectors(self.log, time, self.catalogue.vectors, self.settings)
        return self._behaviour[time]
