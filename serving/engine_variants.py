"""A release's TensorRT engine in the live repository: whether it may run here, whether it does, and if not, why.

Where it may not, or may not yet, the release's ONNX graph answers. All versions of a step are loaded with one config,
so a release without an engine beside the live one takes its engine away for as long as both are needed.
"""

from __future__ import annotations

import contextlib
import importlib

from .engines.fingerprint import FINGERPRINT_NAME, Fingerprint, GpuError, gpu_in_use
from .errors import ReleaseError
from .live_repository import LiveRepository
from .releases import Release

INSTEAD = "the ONNX graph answers instead (docs/tensorrt.md)"


def engine_warning(release: Release) -> str | None:
    """Why a release's engine may not run on this machine; None if it may, or if the release has none."""
    reason = _misfit(release.manifest.engine) if release.manifest.engine is not None else None
    return f"{reason}; {INSTEAD}" if reason else None


def _misfit(built: Fingerprint) -> str | None:
    """Why an engine may not run on this machine; None if it may."""
    try:
        gpu = gpu_in_use()
        # Imported only where there is a GPU and an engine for it: it loads gigabytes of libraries.
        version = str(importlib.import_module("tensorrt").__version__)
    except GpuError as error:
        return f"the release's engine cannot run here: {error}"
    except (ImportError, OSError) as error:
        return f"the release's engine cannot run here: TensorRT cannot be loaded: {error}"
    return built.difference(Fingerprint(**gpu, tensorrt=version))


def engine_waits(repository: LiveRepository, release: Release) -> str | None:
    """Why a release's engine does not answer though it may run here, and what lets it; None if it answers."""
    missing = repository.steps.missing_variants(release)
    if not missing:
        return None
    others = [f"{model} version {version}" for model, versions in missing.items() for version in sorted(versions)]
    beside = f": {', '.join(others)}, which has none, is loaded beside it" if others else ""
    return (
        f"release {release.number}'s engine waits, its ONNX graph answers{beside}; "
        f"`make deploy RELEASE={release.number}` once more lets it answer, unless a canary without one is up"
    )


def uses_engine(repository: LiveRepository, release: Release | None) -> bool:
    """Whether a release that is live answers by its engine, or has none."""
    with contextlib.suppress(ReleaseError):
        return release is not None and not repository.steps.missing_variants(release)
    return False


def take_out(
    repository: LiveRepository, release: Release, live: Release | None, *, engine: bool | None = None
) -> list[str]:
    """Take a release out that was staged and failed, or ends, and let the live one's steps have its configs again.

    Args:
        repository: the live repository.
        release: what goes; where it is the live one, as when it was deployed once more, it stays.
        live: what answers.
        engine: whether that is to answer by its engine, if it has one; None: if it may run on this machine.

    Returns:
        The models that a running server has to load for it.

    Raises:
        PublishError: the folder cannot be written.
    """
    repository.discard(release)
    with contextlib.suppress(ReleaseError):  # it is gone from the store: what was staged of it answers on
        if live is not None:
            return repository.settle(live, variants=engine_warning(live) is None if engine is None else engine)
    return []


def take_out_misfits(repository: LiveRepository) -> list[str]:
    """Have the ONNX graphs answer for the engines that do not belong on this machine any more.

    For a server that is about to start: Triton ends where a model's GPU is gone, for all domains.

    Returns:
        What was taken out and why, a line each.

    Raises:
        PublishError: the folder cannot be written.
    """
    done = []
    for model, versions in repository.steps.variants().items():
        for path in [repository.folder / model / str(version) / FINGERPRINT_NAME for version in sorted(versions)]:
            try:
                reason = _misfit(Fingerprint.read(path)) if path.is_file() else None
            except (OSError, ValueError) as error:
                reason = str(error)
            if reason is not None:
                repository.drop_variants([model])
                done.append(f"{model}: {reason}; {INSTEAD}, until the next deploy")
                break
    return done
