"""From a run to the graphs of a release, each verified against torch before anything is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from export.encoder_graphs import EncoderGraphs
from export.errors import VerificationError
from export.gpu_graphs import GpuGraphs
from export.graph_file import load_graph
from export.int8 import Int8Report, Int8Settings, decide, emit
from export.item_vectors import check_item_vectors
from export.kept_graph import KeptGraph, ReadyGraphs
from export.onnx_graph import export_encoder
from export.report import FP16_BUDGET, FP32_BUDGET, INT8_BUDGET, Check, VerificationBudget, VerificationReport
from export.settings import Engine, ExportSettings, Precision, ServingSettings
from export.speed import compare_speed
from export.task import Task
from export.tensorrt.engine import EngineFile
from export.texts import calibration_texts, verified_instructions
from export.tokens import calibration_batches
from export.verify import verify_encoder
from serving.manifest import EncoderOrigin
from training.embedding_cache import EmbeddingCache
from training.run import Run

INT8_RECIPES = {
    "int8": Int8Settings(),
    "int8-down-fp32": Int8Settings(float_down_projection=True),
}
"""In the order they are tried, fastest first; docs/export.md has what each costs and keeps."""
ITEM_COSINE = 0.9999
"""Between an item's vector and torch's of its text: the same but for the last bits, as batches differ."""
LEAST_INT8_SHARE = 0.5
"""Of the products: a release with fewer in INT8 is FP32 under another name."""


def build_encoder(
    run: Run,
    precision: Precision,
    serving: ServingSettings,
    settings: ExportSettings,
    origin: EncoderOrigin,
    folder: Path,
    var: Path,
    ready: ReadyGraphs,
) -> EncoderGraphs:
    """Export a run's encoder at a precision and verify every graph on the way.

    Args:
        run: the run.
        precision: of the graph that is returned.
        serving: for the length buckets.
        settings: how many texts calibrate and verify.
        origin: what the graph is made of, for the manifest.
        folder: where the graphs are written.
        var: for the cache of torch's vectors.
        ready: what need not be made.

    Raises:
        VerificationError: a graph differs from torch by more than its budget, or the item
            vectors are not the encoder's.
        ExportError: the encoder cannot be exported or quantised.
    """
    builder = _EncoderBuilder(run, serving, settings, folder, var)
    if ready.borrowed is not None:
        return builder.borrow(ready.borrowed, precision, origin)
    return builder.build(precision, origin, ready.kept)


class _EncoderBuilder:
    """What every graph of one run is made of and held against."""

    def __init__(self, run: Run, serving: ServingSettings, settings: ExportSettings, folder: Path, var: Path) -> None:
        self.model = run.load_model()
        self.buckets = serving.buckets_up_to(self.model.max_length)
        self.max_batch_size = serving.max_batch_size
        self.engine = serving.engine
        self.hidden_size = run.manifest.encoder.hidden_size
        self.calibration = calibration_texts(run, settings.calibration_texts)
        self.reduce_range = settings.int8.reduce_range
        instructions = verified_instructions(run, settings.verification_texts)
        self.texts = [one.text for one in instructions]
        self.task = Task(run, instructions)
        self.item_vectors = run.item_vectors()
        self.folder = folder
        self.cache = EmbeddingCache.below(var, run.encoder, self.model.pooling, self.model.max_length)
        self.batch_size = run.config.training.embedding_batch_size
        self.item_checks = check_item_vectors(run, lambda texts: self.model.embed(texts, batch_size=1), ITEM_COSINE)

    def build(self, precision: Precision, origin: EncoderOrigin, kept: KeptGraph | None) -> EncoderGraphs:
        """Make the graph of a precision, by way of FP32."""
        with tqdm(desc="export", bar_format="{desc}: {postfix} ({elapsed})", disable=None) as progress:
            path, reports = self._fp32(kept, progress)
            fp32, engine = (path, tuple(reports)), None
            if precision == "int8":
                path, reports = self._int8(path, reports, progress)
            elif precision == "fp32":
                reports = [*reports, *self._verify_served(path, FP32_BUDGET)]
            else:
                made = self._gpu().build(precision, path, progress.set_postfix_str)
                path, engine, reports = made.path, made.engine, [*reports, *made.reports]
                reports += self._verify_served(path, FP16_BUDGET)
        return replace(self._graphs(path, reports, origin, engine), fp32=fp32)

    def _fp32(self, kept: KeptGraph | None, progress: tqdm[NoReturn]) -> tuple[Path, list[VerificationReport]]:
        """The FP32 graph, verified in ONNX Runtime: the one that was kept, or a new one."""
        path = self.folder / "encoder-fp32.onnx"
        if kept is not None and (reports := kept.take(path)) is not None:
            return path, reports
        progress.set_postfix_str("encoder to ONNX FP32")
        export_encoder(self.model, path)
        progress.set_postfix_str("verifying FP32 against torch")
        reports = [self._hold_against_torch(path, FP32_BUDGET, "onnxruntime")]
        return path, reports

    def _graphs(
        self, path: Path, reports: list[VerificationReport], origin: EncoderOrigin, engine: EngineFile | None = None
    ) -> EncoderGraphs:
        # A later release that takes the graph over finds torch's vectors there, and need not load torch for them.
        self.cache.embed(self.model, self.texts, self.batch_size)
        tokenizer = self.folder / "tokenizer.json"
        # Written here: what the library raises of a full disk is no OSError.
        tokenizer.write_text(self.model.tokenizer.to_str(pretty=True), encoding="utf-8")
        return EncoderGraphs(
            path, self.buckets, self.hidden_size, tokenizer, tuple(reports), self.item_checks, origin, engine
        )

    def borrow(self, graph: Path, precision: Precision, origin: EncoderOrigin) -> EncoderGraphs:
        """Take a graph that was made for another domain, if it passes here."""
        path = self.folder / f"encoder-{precision}.onnx"
        shutil.copy2(graph, path)
        with tqdm(desc="export", bar_format="{desc}: {postfix} ({elapsed})", disable=None) as progress:
            progress.set_postfix_str("verifying the other domain's encoder against torch")
            reports = self._verify(path, INT8_BUDGET if precision == "int8" else FP32_BUDGET)
        return self._graphs(path, reports, origin)

    def _gpu(self) -> GpuGraphs:
        return GpuGraphs(
            self.model,
            self.buckets,
            self.max_batch_size,
            self.calibration,
            self.texts,
            self.item_vectors,
            self.folder,
            self.task,
        )

    def _int8(
        self, fp32: Path, reports: list[VerificationReport], progress: tqdm[NoReturn]
    ) -> tuple[Path, list[VerificationReport]]:
        """Take the fastest recipe that stays within the budget: how much a catalogue forgives, only measuring tells."""
        calibration = calibration_batches(self.model, self.calibration)
        graph = load_graph(fp32)
        for name, recipe in INT8_RECIPES.items():
            path = self.folder / f"encoder-{name}.onnx"
            progress.set_postfix_str(f"calibrating and quantising to INT8 ({name})")
            settings = recipe.model_copy(update={"reduce_range": self.reduce_range})
            made = emit(graph, decide(graph, calibration, settings), path)
            progress.set_postfix_str(f"verifying INT8 against torch ({name})")
            try:
                found = self._verify_int8(path, made)
            except VerificationError as error:
                failed = error
                reports = [*reports, error.report]
            else:
                progress.set_postfix_str("timing INT8 beside FP32")
                engines: tuple[Engine, ...] = ("onnxruntime", self.engine)  # the second only where it is another one
                return path, [
                    *reports,
                    *(
                        report.model_copy(update={"speed": compare_speed(fp32, path, engine=engine)})
                        for report, engine in zip(found, engines, strict=False)
                    ),
                ]
        raise VerificationError(failed.report, before=reports[:-1])

    def _verify_int8(self, path: Path, made: Int8Report) -> list[VerificationReport]:
        """As any graph, and that it is an INT8 graph for the most part."""
        share = Check.at_least("share of products in INT8", made.quantized_share, LEAST_INT8_SHARE)
        reports = [
            report.model_copy(update={"checks": (*report.checks, share)}) for report in self._verify(path, INT8_BUDGET)
        ]
        if not share.passed:
            raise VerificationError(reports[0])
        return reports

    def _verify(self, path: Path, budget: VerificationBudget) -> list[VerificationReport]:
        """In ONNX Runtime, and, where another engine will serve the graph, in that one."""
        return [self._hold_against_torch(path, budget, "onnxruntime"), *self._verify_served(path, budget)]

    def _verify_served(self, path: Path, budget: VerificationBudget) -> list[VerificationReport]:
        return [] if self.engine == "onnxruntime" else [self._hold_against_torch(path, budget, self.engine)]

    def _hold_against_torch(self, path: Path, budget: VerificationBudget, engine: Engine) -> VerificationReport:
        return verify_encoder(
            path,
            self.model,
            self.texts,
            self.buckets,
            budget,
            item_vectors=self.item_vectors,
            task=self.task,
            engine=engine,
        )
