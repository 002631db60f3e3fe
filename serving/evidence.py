"""What a release brings along to be judged by: whether its graphs passed, and what it reached on each test instruction.

Written at export, read at publication. Instructions are named by a hash, so that two releases can be compared on the
instructions that both were tested on, and no person's words are needed for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import ReleaseError
from .files import write_atomically

EVIDENCE_NAME = "evidence.json"
SCHEMA_VERSION = 1


class GraphVerdict(BaseModel):
    """The report of one graph, or of the item index, in short.

    Attributes:
        graph: what was verified.
        failed: the names of the checks that it did not pass.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: str
    failed: tuple[str, ...] = ()


class TaskResults(BaseModel):
    """The task's metrics on every test instruction, by the graph that is served.

    Attributes:
        instructions: the instructions' keys, see `instruction_key`.
        metrics: by metric, one value an instruction, in their order; higher is better, None where it does not apply.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    instructions: tuple[str, ...]
    metrics: dict[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _whole(self) -> TaskResults:
        if len(set(self.instructions)) < len(self.instructions):
            raise ValueError("an instruction occurs twice")
        if any(len(values) != len(self.instructions) for values in self.metrics.values()):
            raise ValueError("a metric has not one value for each instruction")
        return self

    @classmethod
    def of(cls, keys: Sequence[str], metrics: dict[str, npt.NDArray[np.float64]]) -> TaskResults:
        """Results of arrays [n], NaN where a metric does not apply; of equal keys, the first counts."""
        places = sorted({key: place for place, key in reversed(list(enumerate(keys)))}.values())
        return cls(
            instructions=tuple(keys[place] for place in places),
            metrics={
                name: tuple(None if np.isnan(values[place]) else round(float(values[place]), 6) for place in places)
                for name, values in metrics.items()
            },
        )

    def values(self, metric: str) -> dict[str, float]:
        """A metric's values by instruction, where it applies."""
        values = self.metrics.get(metric, ())
        return {key: value for key, value in zip(self.instructions, values, strict=False) if value is not None}


class Evidence(BaseModel):
    """All of it.

    Attributes:
        schema_version: of this file.
        verification: the graph that is served, and the item index if there is one.
        task: on the test instructions; None if the run has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    verification: tuple[GraphVerdict, ...]
    task: TaskResults | None

    @classmethod
    def read(cls, release_folder: Path) -> Evidence | None:
        """Read a release's evidence; None if it has none, as releases of an earlier version.

        Raises:
            ReleaseError: it is damaged, or written by a newer version.
        """
        path = release_folder / EVIDENCE_NAME
        try:
            evidence = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ReleaseError(f"{path}: {where}: {first['msg']}; export the release again") from None
        if evidence.schema_version != SCHEMA_VERSION:
            raise ReleaseError(
                f"{path} has schema version {evidence.schema_version}; this version reads {SCHEMA_VERSION}: "
                "export the release again"
            )
        return evidence

    def write(self, release_folder: Path) -> None:
        """Write it into a release folder, in one step."""
        write_atomically(release_folder / EVIDENCE_NAME, self.model_dump_json().encode() + b"\n")


def instruction_key(instruction_id: str, text: str, label: str) -> str:
    """What an instruction is known by: another wording, or another right answer, is another instruction."""
    return hashlib.sha256("\0".join((instruction_id, text, label)).encode()).hexdigest()[:32]
