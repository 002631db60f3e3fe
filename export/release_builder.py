"""Fills a release's folder: the catalogue, the steps' code, their configs, and a manifest over all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.encoder_graphs import EncoderGraphs
from export.errors import VerificationError
from export.graph_encoder import GraphEncoder
from export.head_graph import export_head
from export.item_index import held_out_requests, wants_index, write_items
from export.model_config import FUSED, GPU_VARIANT, ConfigWriter, step_name, steps_of
from export.report import Check, VerificationReport
from export.served_parts import check_head, check_tokens
from export.settings import ExportSettings, Precision, ServingSettings
from export.shared_steps import SHARED, digest_of, name_by_content
from export.step_code import copy_code
from export.task_results import measure_task
from export.texts import held_out_texts, verified_instructions
from serving.engines.fingerprint import FINGERPRINT_NAME
from serving.evidence import Evidence, GraphVerdict
from serving.files import sha256_of
from serving.line_journal import now
from serving.live_repository import CONFIG_NAME
from serving.manifest import Manifest, Step, files_below
from serving.releases import INSTRUCTIONS_FILE, MODELS_FOLDER, VERIFICATION_FILE, Release
from serving.steps.catalogue import Catalogue, ScoreWeights, StringTable
from serving.steps.text_encoder import Head
from training.atomic import link_or_copy
from training.run import Run

if TYPE_CHECKING:
    from export.tensorrt.engine import EngineFile

__all__ = ["ReleaseBuilder", "add_engine"]

SAMPLE_INSTRUCTIONS = 500


class ReleaseBuilder:
    """Fills one release folder; every file that goes with the encoder is held against the run."""

    def __init__(
        self,
        run: Run,
        serving: ServingSettings,
        settings: ExportSettings,
        number: int,
        releases: Sequence[Release],
        folder: Path,
        var: Path,
    ) -> None:
        """Take what a release is made of.

        Args:
            run: the run.
            serving: how it is served.
            settings: how many texts the parts are verified on, and the task is measured on.
            number: the release's.
            releases: the earlier ones, newest first, whose unchanged steps keep their versions.
            folder: the release's, empty.
            var: where vectors are kept.
        """
        self.run = run
        self.serving = serving
        self.settings = settings
        self.number = number
        self.releases = releases
        self.folder = folder
        self.var = var
        self.models = folder / MODELS_FOLDER
        self.texts = [one.text for one in verified_instructions(run, settings.verification_texts)]
        self.checks: list[Check] = []
        self.item_report: VerificationReport | None = None

    def build(self, graphs: EncoderGraphs, precision: Precision, fingerprint: str) -> Manifest:
        """Write everything but the manifest, and return the manifest.

        Args:
            graphs: the encoder.
            precision: of its graph.
            fingerprint: of everything that determines the release's content.

        Raises:
            VerificationError: what goes with the encoder is not what it should be.
            ExportError: a part cannot be made.
        """
        run = self.run
        self.checks = list(graphs.item_checks)
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
        others = self._other_reports()
        page = "\n".join([graphs.markdown(), *(report.markdown() for report in others)])
        (self.folder / "verification.md").write_text(page, encoding="utf-8")
        reports = [report.model_dump(mode="json") for report in graphs.reports]
        (self.folder / VERIFICATION_FILE).write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        self._write_instructions()
        self._write_evidence(graphs, others)
        return Manifest(
            domain=run.domain,
            release=self.number,
            created=now(),
            run_id=run.run_id,
            run_fingerprint=run.manifest.fingerprint,
            export_fingerprint=fingerprint,
            precision=precision,
            export_settings=self.settings.model_dump(mode="json"),
            items=len(run.catalogue()),
            labels=len(run.labels),
            metrics=run.manifest.metrics,
            verification=graphs.checks() | {name: found for one in others for name, found in one.measured().items()},
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
            self.checks.append(check_head(self.run, step, folder))
        if step in {"tokenizer", "topk", FUSED}:
            copy_code(step, folder)
        if step in {"tokenizer", FUSED}:
            link_or_copy(graphs.tokenizer, folder / "tokenizer.json")
            self.checks.append(check_tokens(self.run, folder / "tokenizer.json", graphs.buckets, self.texts))
        if step in {"topk", FUSED}:
            self._write_catalogue(folder)
        if step == FUSED:
            Head(*self.run.head()).write(folder)
            self.checks.append(check_head(self.run, step, folder))

    def _other_reports(self) -> list[VerificationReport]:
        """Those of what goes with the encoder, all passed."""
        parts = VerificationReport(
            graph="item vectors, head and tokens",
            texts=len(self.texts),
            shapes=(),
            checks=tuple(self.checks),
        )
        if not parts.passed:
            raise VerificationError(parts)
        return [parts, *([self.item_report] if self.item_report else [])]

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
            max_history=self.run.config.training.max_history,
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

    def _write_evidence(self, graphs: EncoderGraphs, others: Sequence[VerificationReport]) -> None:
        """What the gates at publication judge by."""
        reports = [graphs.reports[-1], *others]
        Evidence(
            verification=tuple(
                GraphVerdict(graph=one.graph, failed=tuple(check.name for check in one.failed)) for one in reports
            ),
            task=measure_task(self.run, self._encoder(graphs), self.var, self.settings.task_instructions),
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
