"""Takes a verified encoder over from an earlier release, where the run's encoder and the settings are the same.

What only the graph decides was measured when it was made, and is carried over; what head, catalogue and task decide is
measured anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from export.agreement import encode_rows, not_finite, ranking_checks, vector_checks
from export.encoder_graphs import EncoderGraphs
from export.errors import VerificationError
from export.graph_file import library_version, open_served
from export.head_graph import through_head_graph
from export.item_vectors import check_item_vectors
from export.report import FP32_BUDGET, INT8_BUDGET, Check, VerificationBudget, VerificationReport
from export.settings import LENGTH_MULTIPLES, ExportSettings, Precision, ServingSettings
from export.task import Task
from export.texts import verified_instructions
from serving.errors import ReleaseError
from serving.files import sha256_of
from serving.manifest import EncoderOrigin
from serving.releases import MODELS_FOLDER, VERIFICATION_FILE, Release
from training.embedding_cache import EmbeddingCache
from training.encoder_source import EncoderSource, weights_sha256
from training.run import Run

__all__ = ["encoder_origin", "libraries_and_code", "reuse_encoder"]

Floats = npt.NDArray[np.float32]

BUDGETS: dict[Precision, VerificationBudget] = {"fp32": FP32_BUDGET, "int8": INT8_BUDGET}
"""Of the precisions whose graphs are taken over; those for GPUs are always made afresh, on the machine they are for."""
LIBRARIES = ("onnx", "onnxruntime", "openvino", "tokenizers", "torch", "transformers")
EXPORT_ROOM = Path(__file__).parent
TRAINING_ROOM = EXPORT_ROOM.parent / "training"
ENCODER_CODE = (*sorted(EXPORT_ROOM.rglob("*.py")), *(TRAINING_ROOM / f"{n}.py" for n in ("model", "tokenizer")))
ITEM_COSINES: dict[Precision, float] = {"fp32": 0.9999, "int8": INT8_BUDGET.min_cosine}
"""Least cosine of an item's vector, which is torch's, and that of its text through the graph: 0.9987 in INT8."""
_REPORTS = TypeAdapter(tuple[VerificationReport, ...])


def encoder_origin(
    run: Run,
    precision: Precision,
    serving: ServingSettings,
    settings: ExportSettings,
    number: int,
    borrowed: Path | None = None,
) -> EncoderOrigin:
    """What a run's encoder graph is made of and how, as the manifest of release `number` has it.

    The texts that calibrate are no part of it: a graph that was calibrated on the texts of the run before stays good as
    long as it is verified. Those that verify are, on their own: they decide what has to be measured anew.
    """
    record, digest = run.manifest.encoder, hashlib.sha256()
    folder = run.path / "encoder"
    for part in (
        EncoderSource(folder, weights_sha256(folder)).fingerprint,
        f"{record.pooling} {record.max_length} {precision} {serving.buckets_up_to(record.max_length)}",
        settings.model_dump_json(),
        sha256_of(borrowed) if borrowed else "",
        serving.engine,  # what ran the graph when it was verified
        *libraries_and_code(),
    ):
        digest.update(part.encode() + b"\0")
    texts = [one.text for one in verified_instructions(run, settings.verification_texts)]
    return EncoderOrigin(
        fingerprint=digest.hexdigest(),
        release=number,
        texts=hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    )


def libraries_and_code() -> list[str]:
    """What makes a graph of an encoder and measures it: the libraries' versions, and the sha256 of each file."""
    versions = (f"{name} {library_version(name)}" for name in LIBRARIES)
    return [*versions, *(sha256_of(path) for path in ENCODER_CODE)]


def reuse_encoder(
    run: Run,
    precision: Precision,
    serving: ServingSettings,
    settings: ExportSettings,
    wanted: EncoderOrigin,
    releases: Iterable[Release],
    var: Path,
    say: Callable[[str], object],
) -> EncoderGraphs | None:
    """The encoder of the first of `releases` that has the one `wanted`, verified for this run; None if none has.

    Args:
        run: what is exported.
        precision: of the graph.
        serving: for the length buckets.
        settings: how many texts verify.
        wanted: as `encoder_origin` says of the run.
        releases: where to look, in this order.
        var: for the vectors that torch gave the texts at training.
        say: is told of a release whose files are damaged, and of a graph that does not do for this run.
    """
    if precision not in BUDGETS:
        return None
    for release in releases:
        try:
            origin = release.manifest.encoder
            if origin is None or origin.fingerprint != wanted.fingerprint:
                continue
            found = _whole_files(release)
        except ReleaseError as error:
            say(f"release {release.number} is damaged, its encoder is not used again: {error.message}")
            continue
        verifier = _Verifier(run, serving, settings, found, BUDGETS[precision], var)
        try:
            item_checks = check_item_vectors(run, verifier.embed, ITEM_COSINES[precision])
            same_texts = origin.texts == wanted.texts
            report = verifier.again(release.number) if same_texts else verifier.afresh()
        except VerificationError as error:
            failed = ", ".join(check.name for check in error.report.failed)
            say(f"the encoder graph of release {release.number} does not do for this run ({failed}): it is made anew")
            return None
        return EncoderGraphs(
            path=found.graph,
            buckets=serving.buckets_up_to(run.manifest.encoder.max_length),
            hidden_size=run.manifest.encoder.hidden_size,
            tokenizer=found.tokenizer,
            reports=(report,),
            item_checks=item_checks,
            origin=origin.model_copy(update={"texts": wanted.texts}),
            taken_from=release.number,
        )
    return None


@dataclass(frozen=True)
class _Files:
    graph: Path
    tokenizer: Path
    report: VerificationReport


def _whole_files(release: Release) -> _Files:
    """A release's encoder and what was measured of it, each held against the manifest's sha256.

    Raises:
        ReleaseError: a file is missing or has another content.
    """
    found = {}
    for name, expected in release.manifest.files.items():
        is_model_file = name.startswith(f"{MODELS_FOLDER}/") and name.endswith(("/model.onnx", "/tokenizer.json"))
        if (is_model_file and "_head/" not in name) or name == VERIFICATION_FILE:
            path = release.path / name
            if not path.is_file() or sha256_of(path) != expected:
                raise ReleaseError(f"{path} is missing, or does not have the sha256 of the manifest")
            found[path.name] = path
    try:
        reports = _REPORTS.validate_json(found[VERIFICATION_FILE].read_bytes())
        return _Files(found["model.onnx"], found["tokenizer.json"], reports[-1])
    except (KeyError, IndexError, ValidationError) as error:
        raise ReleaseError(f"{release.path} does not say what was measured of its encoder ({error})") from None


class _Verifier:
    """Holds a graph that an earlier release has against torch, over the held-out instructions of a run."""

    def __init__(
        self,
        run: Run,
        serving: ServingSettings,
        settings: ExportSettings,
        files: _Files,
        budget: VerificationBudget,
        var: Path,
    ) -> None:
        self._run = run
        self._buckets = serving.buckets_up_to(run.manifest.encoder.max_length)
        self._engine = serving.engine
        self._files = files
        self._budget = budget
        self._var = var
        instructions = verified_instructions(run, settings.verification_texts)
        self._texts = [one.text for one in instructions]
        self._task = Task(run, instructions)

    def embed(self, texts: Sequence[str]) -> Floats:
        """The graph's vectors of texts, [n, H]."""
        tokenizer = Tokenizer.from_file(str(self._files.tokenizer))
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        return encode_rows(open_served(self._files.graph, self._engine), rows, LENGTH_MULTIPLES[self._engine])

    def afresh(self) -> VerificationReport:
        """All of it, as if the graph had just been made: the texts are others than those it was held against."""
        from export.verify import verify_encoder  # noqa: PLC0415 - loads torch

        report = verify_encoder(
            self._files.graph,
            self._run.load_model(),
            self._texts,
            self._buckets,
            self._budget,
            item_vectors=self._run.item_vectors(),
            task=self._task,
            engine=self._engine,
        )
        return report.model_copy(update={"graph": self._files.report.graph})

    def again(self, release: int) -> VerificationReport:
        """What can have changed; the rest is as it was measured in `release` or before."""
        before = self._files.report
        reference = _torch_vectors(self._run, self._texts, self._var)
        candidate = self.embed(self._texts)
        finite = not_finite(candidate)
        if not finite.passed:
            raise VerificationError(before.model_copy(update={"checks": (finite,), "task": ()}))
        weight, bias = self._run.head()
        sides = (
            (reference, reference @ weight.T + bias),
            (candidate, through_head_graph(weight, bias, candidate)),
        )
        checks, task = ranking_checks(*sides, self._budget, self._run.item_vectors(), self._task)
        measured = [finite, *vector_checks(reference, candidate, self._budget), *checks]
        names = {check.name for check in measured}
        carried = [check for check in before.checks if check.name not in names and _is_of_the_graph(check)]
        marked = [check.model_copy(update={"release": check.release or release}) for check in carried]
        report = before.model_copy(update={"checks": (*measured, *marked), "task": tuple(task)})
        if not report.passed:
            raise VerificationError(report)
        return report


def _is_of_the_graph(check: Check) -> bool:
    """Not of the task, which the run before may have had an answer for and this one not."""
    return not check.name.startswith("loss of")


def _torch_vectors(run: Run, texts: Sequence[str], var: Path) -> Floats:
    """What torch made of the texts, float32 [n, H]: kept since training, or made again."""
    record = run.manifest.encoder
    cache = EmbeddingCache.below(var, run.encoder, record.pooling, record.max_length)
    return cache.embed_with(run.load_model, record.hidden_size, texts, run.config.training.embedding_batch_size)
