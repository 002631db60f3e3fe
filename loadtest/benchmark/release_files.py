"""The files of a release that a benchmark opens by itself, whichever way the release is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError
from serving.live_repository import CONFIG_NAME, read_config
from serving.manifest import Manifest
from serving.releases import MODELS_FOLDER


@dataclass(frozen=True)
class ReleaseFiles:
    """Where a release keeps what a plain service needs.

    Attributes:
        mode: "fused" or "ensemble": how the release is served.
        engine: what runs its encoder, "onnxruntime" or "openvino".
        graph: the encoder's graph.
        tokenizer: `tokenizer.json`.
        limit: the tokens that a text is cut to.
        catalogue: the folder of the item files.
    """

    mode: str
    engine: str
    graph: Path
    tokenizer: Path
    limit: int
    catalogue: Path

    @classmethod
    def of(cls, release: Path, domain: str) -> ReleaseFiles:
        """Find them; the manifest says what the steps are called, which domains may share.

        Raises:
            LoadTestError: the release is of another domain.
            ReleaseError: the folder holds no release, or a damaged one.
        """
        manifest = Manifest.read(release)
        if manifest.domain != domain:
            raise LoadTestError(
                f"{release} is a release of {manifest.domain}, not of {domain}: name another with --release"
            )
        manifest.verify(release)
        fused = "fused" in manifest.steps
        encoder, tokenizer, ranking = (
            release / MODELS_FOLDER / manifest.steps[step].model / str(manifest.steps[step].version)
            for step in (("fused",) * 3 if fused else ("encoder", "tokenizer", "topk"))
        )
        config, texts = (read_config(folder.parent / CONFIG_NAME) for folder in (encoder, tokenizer))
        return cls(
            mode="fused" if fused else "ensemble",
            engine=config.parameters["engine"].string_value if fused else config.backend,
            graph=encoder / "model.onnx",
            tokenizer=tokenizer / "tokenizer.json",
            limit=int(texts.parameters["max_length" if fused else "length_buckets"].string_value.rpartition(",")[2]),
            catalogue=ranking,
        )
