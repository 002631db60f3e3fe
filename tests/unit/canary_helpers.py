"""What tests of a canary's commands share: a stand-in for a Triton that serves the live repository, and a shop."""

from __future__ import annotations

import datetime
import io
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from serving.canary.ensemble import Canary, read_canary, write_canary
from serving.canary.lifecycle import PutUp, put_up
from serving.layout import Layout
from serving.live_repository import LiveRepository, read_config
from serving.releases import Release

FULL = "Exceeds maximum queue size"


class Answer:
    """What an ensemble answers: one item."""

    def __init__(self, version: int) -> None:
        self.version = version

    def as_numpy(self, name: str) -> Any:
        values = {"score": [[1.0]], "item_id": [[b"sku-1"]], "release": [[str(self.version).encode()]]}
        return np.array(values[name], dtype=None if name == "score" else object)

    def get_response(self) -> Any:
        return SimpleNamespace(model_version=str(self.version))


class FakeTriton:
    """Every connection is this one.

    Attributes:
        answered, failed: requests by ensemble since it was loaded.
        faults: what ensembles fail with; a list is used up first to last, a text is for every request.
        missing: ensembles that are not loaded.
        refused: requests that steps refused because too many waited, by model and version.
        hides_metrics: whether its metrics cannot be read.
    """

    def __init__(self, repository: LiveRepository) -> None:
        self.repository = repository
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.faults: dict[str, list[str] | str] = {}
        self.missing: set[str] = set()
        self.refused: Counter[tuple[str, int]] = Counter()
        self.hides_metrics = False

    def __call__(self, _url: str, **_settings: object) -> FakeTriton:
        return self

    def __enter__(self) -> FakeTriton:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def version(self, model: str) -> int:
        if model in self.missing or not (self.repository.folder / model / "config.pbtxt").is_file():
            raise InferenceServerException(f"Request for unknown model: '{model}' is not found")
        return int(read_config(self.repository.folder / model / "config.pbtxt").version_policy.specific.versions[0])

    def infer(self, model: str, *_: Any, **__: Any) -> Answer:
        fault = self.faults.get(model)
        if isinstance(fault, list):
            fault = fault.pop(0) if fault else None
        if fault:
            self.failed[model] += 1
            raise InferenceServerException(fault)
        version = self.version(model)
        self.answered[model] += 1
        return Answer(version)

    def get_inference_statistics(self, model: str, *_: Any, **__: Any) -> Any:
        self.version(model)
        success = SimpleNamespace(count=self.answered[model], ns=self.answered[model] * 5_000_000)
        counts = SimpleNamespace(success=success, fail=SimpleNamespace(count=self.failed[model]))
        return SimpleNamespace(model_stats=[SimpleNamespace(inference_stats=counts)])

    def get_model_config(self, model: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(config=read_config(self.repository.folder / model / "config.pbtxt"))

    def metrics(self, *_: Any, **__: Any) -> io.BytesIO:
        if self.hides_metrics:
            raise TimeoutError("timed out")
        lines = (
            f'instructrec_refused_requests{{model="{model}",version="{version}"}} {count}\n'
            for (model, version), count in self.refused.items()
        )
        return io.BytesIO("".join(lines).encode())

    def load_model(self, model: str, **_: Any) -> None:
        self.answered[model] = self.failed[model] = 0

    def unload_model(self, model: str, **_: Any) -> None:
        pass

    def is_model_ready(self, *_: Any, **__: Any) -> bool:
        return True

    def is_server_live(self, **_: Any) -> bool:
        return True


@dataclass
class Shop:
    """Release 1 is live, release 2 is there."""

    layout: Layout
    triton: FakeTriton
    releases: dict[int, Release]

    @property
    def repository(self) -> LiveRepository:
        return LiveRepository(self.layout.live)

    @property
    def canary(self) -> Canary:
        found = read_canary(self.repository, "shop")
        assert found is not None
        return found

    def put_up(self, share: float = 0.1) -> PutUp:
        gates: Any = SimpleNamespace(failed=(), check_files=lambda *_: None, check_answers=lambda *_: None)
        return put_up(self.layout, self.releases[2], share, gates)

    def pass_time(self, seconds: float) -> None:
        """Let the canary have come up so long ago."""
        since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=seconds)
        write_canary(self.repository, replace(self.canary, since=since.isoformat(timespec="seconds")), self.releases[2])
