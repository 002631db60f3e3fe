"""Encoders and tokenizers that several domains share: named by their content, so that equal ones are one model.

The live repository takes a step by its name and version: what is there already is neither copied nor loaded again, and
goes when no live ensemble pins it. So nothing but the name is needed for two domains to serve from one loaded copy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from export.errors import ExportError
from export.settings import Precision
from serving.files import sha256_of
from serving.layout import Layout
from serving.live_repository import CONFIG_NAME, format_config, parse_config
from serving.manifest import Step
from serving.releases import ReleaseStore

SHARED = ("tokenizer", "encoder")
"""The steps that know nothing of a domain's labels and items."""
BORROWED: tuple[Precision, ...] = ("fp32", "int8")


def name_by_content(step: str, folder: Path) -> Step:
    """Rename a step's folder (with its version folder `new` and its config) after what is in it.

    Args:
        step: what it does; the name begins with it.
        folder: of the model, complete.

    Returns:
        The step, as version 1 of its name: another content is another name.
    """
    config = parse_config((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    config.name = step
    (folder / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    digest = digest_of(folder)
    config.name = f"{step}_{digest[:12]}"
    (folder / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    (folder / "new").rename(folder / "1")
    folder.rename(folder.with_name(config.name))
    return Step(model=config.name, version=1, digest=digest)


def digest_of(folder: Path) -> str:
    """The sha256 over all files below a model's folder, their names included."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + sha256_of(path).encode())
    return digest.hexdigest()


def borrowed_encoder(layout: Layout, domain: str, precision: Precision) -> Path:
    """The encoder's graph of another domain's newest release, checked against its manifest.

    INT8 graphs are calibrated on a domain's own texts, so that no two are equal unless one is taken over.

    Raises:
        ExportError: there is no release of that precision to take it from.
        ReleaseError: the release is damaged.
    """
    if precision not in BORROWED:
        raise ExportError(f"export.encoder_from works with the precisions {' and '.join(BORROWED)}, not {precision}")
    store = ReleaseStore(layout.releases(domain))
    for number in reversed(store.numbers()):
        release = store.open(number)
        step = release.manifest.steps.get("encoder") or release.manifest.steps.get("fused")
        if release.manifest.precision == precision and step is not None:
            release.model_file(step.model, str(step.version), "model.onnx")
            return release.models / step.model / str(step.version) / "model.onnx"
    raise ExportError(
        f"export.encoder_from: there is no {precision} release of {domain} in {layout.var}; "
        f"run `make export DOMAIN={domain} PRECISION={precision}` first"
    )
