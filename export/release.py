"""Assemble a release: verified graphs, the catalogue, the steps' code, their configs, and a manifest over all of it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.encoder_graphs import EncoderGraphs
from export.errors import ExportError, VerificationError
from export.graph_encoder import GraphEncoder
from export.head_graph import export_head
from export.item_index import held_out_requests, wants_index, write_items
from export.kept_graph import KeptGraph, ReadyGraphs
from export.model_config import FUSED, GPU_VARIANT, MODEL_REPOSITORY, ConfigWriter, step_name, steps_of
from export.report import VerificationReport
from export.reuse import TRAINING_ROOM, encoder_origin, reuse_encoder
from export.settings import ExportSettings, Precision, ServingSettings, read_section
from export.shared_steps import SHARED, borrowed_encoder, digest_of, name_by_content
from export.step_code import STEPS_CODE, copy_code
from export.task_results import measure_task
from export.tensorrt.module import gpu_failures_in_one_line, load_tensorrt
from export.texts import held_out_texts
from serving.engines.fingerprint import FINGERPRINT_NAME, Fingerprint
from serving.errors import ReleaseError
from serving.evidence import Evidence, GraphVerdict
from serving.files import sha256_of
from serving.layout import Layout
from serving.line_journal import now
from serving.live_repository import CONFIG_NAME, LiveRepository
from serving.manifest import EncoderOrigin, Manifest, Step, files_below
from serving.releases import INSTRUCTIONS_FILE, MODELS_FOLDER, VERIFICATION_FILE, Release, ReleaseStore
from serving.steps.catalogue import Catalogue, ScoreWeights, StringTable
from serving.steps.text_encoder import Head
from training.atomic import link_or_copy, new_folder
from training.config import DomainConfig
from training.run import Run

if TYPE_CHECKING:
    from export.tensorrt.engine import EngineFile

SAMPLE_INSTRUCTIONS = 500


@dataclass(frozen=True)
class Exported:
    """What `export_release` gives back.

    Attributes:
        release: the release.
        is_new: False if the newest release was made of just the same.
        taken_from: the release that its encoder was taken over from; None if it was made for this one.
    """

    release: Release
    is_new: bool
    taken_from: int | None = None


OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def _one_line_of_disk_errors() -> Iterator[None]:
    """A disk that is full, or a folder that may not be written: no release is made, and half of one is not left."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = ": free some space or check the rights" if error.errno in OF_THE_DISK else ""
        raise ExportError(f"{where}{error.strerror or error}; no release was made{advice}") from error


@_one_line_of_disk_errors()
@gpu_failures_in_one_line()
def export_release(
    run: Run,
    config: DomainConfig,
    layout: Layout,
    precision: Precision,
    *,
    reuse: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Make a run into the domain's next release, unless the newest is of the same run, settings and code.

    The encoder is taken over from a release that has the same one, where there is one; what can differ is verified.

    Args:
        run: what training made.
        config: the domain's config as it is now; of it, the sections `serving` and `export` count here.
        layout: where releases lie.
        precision: of the encoder's graph.
        reuse: whether an earlier release's encoder may be taken over, or the FP32 graph that an export has kept.
        say: is told, a line each, why one was not that might have been.

    Raises:
        VerificationError: the graph differs from torch by more than the budget; no release is made, the report is kept
            in the log folder.
        ExportError: the run cannot be exported, or the release not written.
    """
    serving = read_section(ServingSettings, "serving", config.serving)
    settings = read_section(ExportSettings, "export", config.export)
    _check_engine(precision, serving)
    folder = layout.releases(run.domain)
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        store = ReleaseStore(folder)
        releases = _releases(store)
        previous = releases[0] if releases else None
        borrowed = borrowed_encoder(layout, settings.encoder_from, precision) if settings.encoder_from else None
        fingerprint = _fingerprint(run, precision, serving, settings, borrowed)
        if previous is not None and previous.manifest.export_fingerprint == fingerprint:
            return Exported(previous, is_new=False)
        number = _next_number(folder, layout, run.domain)
        with tempfile.TemporaryDirectory(prefix=".graphs-", dir=folder) as scratch:
            origin = encoder_origin(run, precision, serving, settings, number, borrowed)
            graphs = None
            if reuse:
                graphs = reuse_encoder(run, precision, serving, settings, origin, releases, layout.var, say)
            if graphs is None:
                kept = _kept_graph(run, serving, settings, layout) if reuse and borrowed is None else None
                ready = ReadyGraphs(borrowed, kept)
                graphs = _build_graphs(run, precision, serving, settings, origin, Path(scratch), layout, ready)
            with new_folder(folder / str(number)) as staged:
                builder = _ReleaseBuilder(run, serving, number, releases, staged, layout.var)
                manifest = builder.build(graphs, precision, fingerprint, settings.task_instructions)
                manifest.write(staged)
        return Exported(store.open(number), is_new=True, taken_from=graphs.taken_from)


def _check_engine(precision: Precision, serving: ServingSettings) -> None:
    if precision.startswith("trt-") and (serving.mode == "fused" or serving.engine == "openvino"):
        raise ExportError(
            f"{precision} is an encoder of its own on a GPU: set serving.mode to ensemble and serving.engine to "
            f"onnxruntime, not {serving.mode} and {serving.engine}"
        )


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One export a domain at a time; a dead exporter's lock is gone with it."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _releases(store: ReleaseStore) -> list[Release]:
    """The releases, newest first, whose unchanged steps keep their versions; one without a manifest is none."""
    found = []
    for number in reversed(store.numbers()):
        release = store.open(number)
        try:
            release.manifest  # noqa: B018 - read, and so checked, here
        except ReleaseError:
            continue
        found.append(release)
    return found


def _next_number(folder: Path, layout: Layout, domain: str) -> int:
    """A number that no folder here bears, nor what is live, whose release may have been removed."""
    used = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    live = LiveRepository(layout.live).live_release(domain)
    return max([*used, live.number if live else 0], default=0) + 1


def _kept_graph(run: Run, serving: ServingSettings, settings: ExportSettings, layout: Layout) -> KeptGraph:
    """Where the FP32 graph of this very run may lie, held against torch on the same texts by the same code."""
    fp32, code = encoder_origin(run, "fp32", serving, settings, number=1), hashlib.sha256()
    _add_code(code, (TRAINING_ROOM, STEPS_CODE))
    made_of = (run.run_id, run.manifest.fingerprint, fp32.fingerprint, fp32.texts, code.hexdigest())
    return KeptGraph(layout.var, run.domain, made_of)


def _build_graphs(
    run: Run,
    precision: Precision,
    serving: ServingSettings,
    settings: ExportSettings,
    origin: EncoderOrigin,
    scratch: Path,
    layout: Layout,
    ready: ReadyGraphs,
) -> EncoderGraphs:
    from export.graphs import build_encoder  # noqa: PLC0415 - loads torch, which a release that has it all does not need

    try:
        return build_encoder(run, precision, serving, settings, origin, scratch, layout.var, ready)
    except VerificationError as error:
        report = layout.var / "logs" / f"verification-{run.domain}-{precision}.md"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(error.report.markdown(), encoding="utf-8")
        raise VerificationError(error.report, kept_at=report) from None


def _fingerprint(
    run: Run, precision: Precision, serving: ServingSettings, settings: ExportSettings, borrowed: Path | None
) -> str:
    """Of all that determines a release's content: the run, the settings, the code that makes it and that it ships."""
    digest = hashlib.sha256()
    for part in (
        run.run_id,
        run.manifest.fingerprint,
        precision,
        serving.model_dump_json(),
        settings.model_dump_json(),
        sha256_of(borrowed) if borrowed else "",
        # An engine is of one machine: the same export elsewhere is another release.
        str(Fingerprint.here(load_tensorrt().__version__)) if precision.startswith("trt-") else "",
    ):
        digest.update(part.encode() + b"\0")
    _add_code(digest, (Path(__file__).parent, STEPS_CODE, MODEL_REPOSITORY))
    return digest.hexdigest()


def _add_code(digest: hashlib._Hash, roots: Sequence[Path]) -> None:
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix in {".py", ".pbtxt"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())


class _ReleaseBuilder:
    """Fills one release folder."""

    def __init__(
        self,
        run: Run,
        serving: ServingSettings,
        number: int,
        releases: Sequence[Release],
        folder: Path,
        var: Path,
    ) -> None:
        self.run = run
        self.serving = serving
        self.number = number
        self.releases = releases
        self.folder = folder
        self.var = var
        self.models = folder / MODELS_FOLDER
        self.item_report: VerificationReport | None = None

    def build(self, graphs: EncoderGraphs, precision: Precision, fingerprint: str, task_instructions: int) -> Manifest:
        """Write everything but the manifest, and return the manifest."""
        run = self.run
        configs = ConfigWriter(run.domain, self.serving, graphs.buckets, graphs.hidden_size, len(run.labels))
        steps = {}
        for step in steps_of(self.serving.mode):
            staged = self.models / step_name(run.domain, step) / "new"
            staged.mkdir(parents=True)
            self._fill(step, staged, graphs, configs)
            config = configs.step(step)
            (staged.parent / CONFIG_NAME).write_text(config, encoding="utf-8")
            shared = self.serving.share_steps and step in SHARED and graphs.engine is None
            steps[step] = name_by_content(step, staged.parent) if shared else self._number_step(step, staged)
        ensemble = self.models / run.domain
        (ensemble / str(self.number)).mkdir(parents=True)
        # Triton wants the folder; not every store keeps empty ones.
        (ensemble / str(self.number) / "release").write_text(f"{self.number}\n")
        versions, models = (
            {name: getattr(step, part) for name, step in steps.items()} for part in ("version", "model")
        )
        (ensemble / CONFIG_NAME).write_text(configs.ensemble(versions, models), encoding="utf-8")
        page = graphs.markdown() + (f"\n{self.item_report.markdown()}" if self.item_report else "")
        (self.folder / "verification.md").write_text(page, encoding="utf-8")
        reports = [report.model_dump(mode="json") for report in graphs.reports]
        (self.folder / VERIFICATION_FILE).write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        self._write_instructions()
        self._write_evidence(graphs, task_instructions)
        return Manifest(
            domain=run.domain,
            release=self.number,
            created=now(),
            run_id=run.run_id,
            run_fingerprint=run.manifest.fingerprint,
            export_fingerprint=fingerprint,
            precision=precision,
            items=len(run.catalogue()),
            labels=len(run.labels),
            metrics=run.manifest.metrics,
            verification=graphs.checks() | (self.item_report.measured() if self.item_report else {}),
            steps=steps,
            encoder=graphs.origin,
            engine=graphs.engine.fingerprint if graphs.engine else None,
            files={name: sha256_of(self.folder / name) for name in sorted(files_below(self.folder))},
        )

    def _fill(self, step: str, folder: Path, graphs: EncoderGraphs, configs: ConfigWriter) -> None:
        if step in {"encoder", FUSED}:
            link_or_copy(graphs.path, folder / "model.onnx")
            configs.write_warmup_data(step, folder.parent)
            if graphs.engine:
                add_engine(folder, graphs.engine, configs)
        if step == "head":
            export_head(*self.run.head(), folder / "model.onnx")
        if step in {"tokenizer", "topk", FUSED}:
            copy_code(step, folder)
        if step in {"tokenizer", FUSED}:
            link_or_copy(graphs.tokenizer, folder / "tokenizer.json")
        if step in {"topk", FUSED}:
            self._write_catalogue(folder)
        if step == FUSED:
            self._write_head(folder)

    def _write_head(self, folder: Path) -> None:
        Head(*self.run.head()).write(folder)

    def _write_catalogue(self, folder: Path) -> None:
        items = self.run.catalogue()
        row_of = {label: row for row, label in enumerate(self.run.labels)}
        weights = self.run.score_weights
        catalogue = Catalogue(
            release=str(self.number),
            item_ids=StringTable.of([item.item_id for item in items]),
            titles=StringTable.of([item.title for item in items]),
            item_vectors=self.run.item_vectors(),
            label_index=np.array([row_of[item.label] for item in items], dtype=np.int32),
            prior=np.array([item.prior for item in items], dtype=np.float32),
            labels=self.run.labels,
            score_weights=ScoreWeights(**weights.model_dump()),
            history_vectors=self.run.history_vectors(),
            exclude_history=self.run.config.history.exclude_seen,
        )
        wanted = wants_index(len(items), self.serving.topk)
        requests = held_out_requests(self.run, catalogue) if wanted else None
        self.item_report = write_items(catalogue, folder, self.serving.topk, requests)

    def _number_step(self, step: str, staged: Path) -> Step:
        """Give a step its version: that of an earlier release with the same content, else this release's number."""
        digest, model = digest_of(staged.parent), step_name(self.run.domain, step)
        before = (release.manifest.steps.get(step) for release in self.releases)
        same = (one.version for one in before if one and (one.model, one.digest) == (model, digest))
        version = next(same, self.number)
        staged.rename(staged.with_name(str(version)))
        return Step(model=model, version=version, digest=digest)

    def _write_instructions(self) -> None:
        """A sample of the domain's real instructions, some with a history, for probes and load tests."""
        rows = [{"text": text, "history": []} for text in held_out_texts(self.run, SAMPLE_INSTRUCTIONS)]
        item_ids = [item.item_id for item in self.run.catalogue()]
        chooser = np.random.default_rng(0)
        for row in rows[1::2]:
            row["history"] = [item_ids[i] for i in chooser.integers(0, len(item_ids), size=chooser.integers(1, 11))]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (self.folder / INSTRUCTIONS_FILE).write_text("".join(lines), encoding="utf-8")

    def _write_evidence(self, graphs: EncoderGraphs, task_instructions: int) -> None:
        """What the gates at publication judge by."""
        reports = [graphs.reports[-1], *([self.item_report] if self.item_report else [])]
        Evidence(
            verification=tuple(
                GraphVerdict(graph=one.graph, failed=tuple(check.name for check in one.failed)) for one in reports
            ),
            task=measure_task(self.run, self._encoder(graphs), self.var, task_instructions),
        ).write(self.folder)

    def _encoder(self, graphs: EncoderGraphs) -> GraphEncoder:
        return GraphEncoder(
            graphs.path,
            graphs.tokenizer,
            hidden_size=graphs.hidden_size,
            pooling=self.run.manifest.encoder.pooling,
            max_length=graphs.buckets[-1],
            engine=self.serving.engine,
        )


def add_engine(folder: Path, engine: EngineFile, configs: ConfigWriter) -> None:
    """Put an engine beside the ONNX graph it was built of, which answers wherever the engine does not belong.

    Args:
        folder: The encoder's version folder.
        engine: The engine.
        configs: Of the release; its variant for GPUs goes beside the version folder.
    """
    shutil.copy2(engine.path, folder / "model.plan")
    engine.fingerprint.write(folder / FINGERPRINT_NAME)
    variant = folder.parent / GPU_VARIANT
    variant.parent.mkdir()
    variant.write_text(configs.gpu_encoder(), encoding="utf-8")
