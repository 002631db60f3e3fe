"""The files of a release that a benchmark opens by itself, whichever way the release is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from loadtest.errors import LoadTestError


@dataclass(frozen=True)
class ReleaseFiles:
    """Where a release keeps what a plain service needs.

    Attributes:
        mode: "fused" or "ensemble": how the release is served.
        engine: what runs its encoder, "onnxruntime" or "openvino".
        graph: the encoder's graph.
        tokenizer: `tokenizer.json`.
        catalogue: the folder of the item files.
    """

    mode: str
    engine: str
    graph: Path
    tokenizer: Path
    catalogue: Path

    @classmethod
    def of(cls, release: Path, domain: str) -> ReleaseFiles:
        """Find them.

        Raises:
            LoadTestError: the folder holds no release of that domain.
        """
        models = release / "models"
        fused = (models / f"{domain}_fused").is_dir()
        names = ("fused", "fused", "fused") if fused else ("encoder", "tokenizer", "topk")
        files = ("model.onnx", "tokenizer.json", "catalogue.json")
        found = [next(models.glob(f"{domain}_{name}/*/{file}"), None) for name, file in zip(names, files, strict=True)]
        graph, tokenizer, header = found
        if graph is None or tokenizer is None or header is None:
            raise LoadTestError(f"{release}: no release of {domain} in it: name a release folder with --release")
        config = text_format.Parse(
            (graph.parent.parent / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
        )
        engine = config.parameters["engine"].string_value if fused else config.backend
        return cls("fused" if fused else "ensemble", engine, graph, tokenizer, header.parent)
