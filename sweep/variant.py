"""One release, served with other settings: its files by hard link, its configs anew, in a repository of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from export.head_graph import export_head
from export.model_config import FUSED, ConfigWriter, step_name, steps_of
from export.settings import ServingSettings
from export.step_code import copy_code
from loadtest.benchmark.release_files import ReleaseFiles
from serving.embedded import join_lengths
from serving.live_repository import CONFIG_NAME, format_config, parse_config
from serving.releases import Release
from serving.steps.text_encoder import Head
from sweep.errors import SweepError
from training.atomic import link_or_copy

__all__ = ["ReleaseParts"]

OWN_FILES = {"model.py", "model.onnx", "tokenizer.json", "head_weight.npy", "head_bias.npy", "__pycache__"}
"""Files of a fused or top-k step that are not the catalogue's."""
VERSION = 1


@dataclass(frozen=True)
class ReleaseParts:
    """What a release is made of, however it is served.

    Attributes:
        release: the release.
        graph: the encoder's ONNX file.
        tokenizer: `tokenizer.json`.
        items: the catalogue's files.
        weight: the head's, float32 [K, H].
        bias: the head's, float32 [K].
        limit: the longest text, in tokens.
    """

    release: Release
    graph: Path
    tokenizer: Path
    items: tuple[Path, ...]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    limit: int

    @classmethod
    def of(cls, release: Release) -> ReleaseParts:
        """Find them.

        Raises:
            SweepError: the release is served by a TensorRT engine, which is not for the CPU.
            ReleaseError: the release is damaged.
        """
        manifest = release.manifest
        if manifest.engine is not None:
            raise SweepError(
                f"release {release.number} of {manifest.domain} has a TensorRT engine: what is measured here is the "
                "CPU. Export one with PRECISION=int8"
            )
        files = ReleaseFiles.of(release.path, manifest.domain)
        if files.mode == "fused":
            head = Head.open(files.graph.parent)
            weight, bias = head.weight, head.bias
        else:
            step = manifest.steps["head"]
            tensors = onnx.load(release.models / step.model / str(step.version) / "model.onnx").graph.initializer
            values = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
            weight, bias = values["weight"], values["bias"]
        items = sorted(path for path in files.catalogue.iterdir() if path.is_file() and path.name not in OWN_FILES)
        return cls(
            release=release,
            graph=files.graph,
            tokenizer=files.tokenizer,
            items=tuple(items),
            weight=weight,
            bias=bias,
            limit=files.limit,
        )

    def lay_out(self, live: Path, name: str, settings: ServingSettings, *, batching: bool = True) -> None:
        """Write the models that serve the release with some settings into a model repository.

        Args:
            live: the repository's folder, on the disk of the releases.
            name: of the ensemble; several may lie side by side.
            settings: how it is served.
            batching: False: Triton is not to join requests, to see what that is worth.
        """
        labels, hidden_size = self.weight.shape
        configs = ConfigWriter(name, settings, settings.buckets_up_to(self.limit), hidden_size, labels)
        for step in steps_of(settings.mode):
            folder = live / step_name(name, step) / str(VERSION)
            folder.mkdir(parents=True)
            self._fill(step, folder, configs)
            config = parse_config(configs.step(step))
            config.version_policy.specific.versions.append(VERSION)
            join_lengths(config)
            if not batching:
                config.ClearField("dynamic_batching")
            (folder.parent / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
        (live / name / str(VERSION)).mkdir(parents=True)
        ensemble = configs.ensemble(dict.fromkeys(steps_of(settings.mode), VERSION))
        (live / name / CONFIG_NAME).write_text(ensemble, encoding="utf-8")

    def _fill(self, step: str, folder: Path, configs: ConfigWriter) -> None:
        if step in {"encoder", FUSED}:
            link_or_copy(self.graph, folder / "model.onnx")
            configs.write_warmup_data(step, folder.parent)
        if step == "head":
            export_head(self.weight, self.bias, folder / "model.onnx")
        if step in {"tokenizer", FUSED}:
            link_or_copy(self.tokenizer, folder / "tokenizer.json")
        if step in {"topk", FUSED}:
            for path in self.items:
                link_or_copy(path, folder / path.name)
        if step in {"tokenizer", "topk", FUSED}:
            copy_code(step, folder)
        if step == FUSED:
            Head(self.weight, self.bias).write(folder)
