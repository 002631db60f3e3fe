"""Triton model `feedback`: events in, whether each was new out, once they are durable."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` and `feedback/` of this very version, never another's

from steps.batching import answer_batch
from steps.invalid_request import InvalidRequestError
from steps.unavailable import UnavailableError

from feedback.errors import InvalidEventError, StoreError
from feedback.events import PROBE, Event, read_events
from feedback.location import Location
from feedback.store import FeedbackStore


class TritonPythonModel:
    """Makes a batch of requests into one transaction."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the store. One that cannot be opened now is tried again with every batch: recommendations go on."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.store = FeedbackStore(Location(Path(parameters["folder"]["string_value"])))
        self.events_family = pb_utils.MetricFamily(  # kept: a metric whose family is collected is dead
            name="instructrec_feedback_events",
            description="Feedback events by what became of them",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.events = {
            result: self.events_family.Metric(labels={"model": args["model_name"], "result": result})
            for result in ("stored", "known", "failed")
        }
        self.failing = ""
        self._store([])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with `stored`, or with an error of its own."""
        return answer_batch(requests, self._read, self._store, self._write)

    def finalize(self) -> None:
        """Close the store; let go of the metrics while there is a server to tell, for later the stub would crash."""
        self.store.close()
        self.events.clear()
        del self.events_family

    def _read(self, request: Any) -> list[Event]:
        def column(name: str) -> Any:
            found = pb_utils.get_input_tensor_by_name(request, name)
            return None if found is None else found.as_numpy()

        try:
            return read_events(column)
        except InvalidEventError as error:
            raise InvalidRequestError(str(error)) from None

    def _store(self, requests: list[list[Event]]) -> list[Any]:
        """One transaction for all; if the store fails, all senders learn it at once, for one by one would fail too."""
        batch = [event for events in requests for event in events]
        try:
            stored = self.store.write(batch)
        except StoreError as error:
            self._say(str(error))
            self.events["failed"].increment(len(batch))
            # The client knows by these words that the server itself is well.
            return [UnavailableError(f"feedback cannot be stored: {error}")] * len(requests)
        self._say("")
        self.events["stored"].increment(sum(stored))
        self.events["known"].increment(sum(event.event != PROBE for event in batch) - sum(stored))
        flags = np.array(stored, dtype=np.int32).reshape(-1, 1)
        return np.split(flags, np.cumsum([len(events) for events in requests])[:-1]) if requests else []

    def _say(self, failing: str) -> None:
        """Log when the store begins or ceases to fail, not with every batch."""
        if failing != self.failing:
            pb_utils.Logger.log_error(failing or "feedback store: works again")
        self.failing = failing

    def _write(self, stored: Any) -> list[Any]:
        return [pb_utils.Tensor("stored", np.ascontiguousarray(stored))]
