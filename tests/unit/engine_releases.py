"""Small releases whose encoder has an engine, and a machine that it was built on."""

from __future__ import annotations

from pathlib import Path

from engine_fakes import BUILT
from serving_helpers import build_release, manifest_of

from serving.engines.fingerprint import FINGERPRINT_NAME
from serving.live_repository import LiveRepository
from serving.releases import Release


def engine_release(folder: Path, number: int = 1, *, encoder: int | None = None, other: str = "head") -> Release:
    """A release whose encoder has an engine and the config variant for it, and one more step of its own."""
    version = encoder or number
    release = build_release(folder, number, {"encoder": (version, f"{version}"), other: (number, f"{other}{number}")})
    model = release.models / "shop_encoder"
    (model / "configs").mkdir()
    (model / "configs" / "gpu.pbtxt").write_text(
        'name: "shop_encoder"\nbackend: "tensorrt"\ndefault_model_filename: "model.plan"\nmax_batch_size: 32\n'
        'input { name: "input_ids" dims: [-1] }\n'
    )
    (model / str(version) / "model.plan").write_bytes(b"engine")
    BUILT.write(model / str(version) / FINGERPRINT_NAME)
    made = manifest_of(release.path, "shop", number, release.manifest.steps)
    made.model_copy(update={"engine": BUILT}).write(release.path)
    return Release(release.path)


def variant(repository: LiveRepository) -> Path:
    """What Triton reads instead of the encoder's config.pbtxt."""
    return repository.folder / "shop_encoder" / "configs" / "gpu.pbtxt"
