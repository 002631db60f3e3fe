"""What a CPU has for INT8 products.

Without VNNI, x86 kernels of U8 times S8 add pairs of products up in 16 bits, where two great ones overflow
(ONNX Runtime, pull request 12088).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .manifest import Manifest

__all__ = ["cpu_difference", "cpu_features"]

CPU_INFORMATION = Path("/proc/cpuinfo")
INT8_FEATURES = {"amx_int8", "avx2", "avx512_vnni", "avx512bw", "avx_vnni"}
VNNI = {"avx512_vnni", "avx_vnni"}


def cpu_features(information: Path = CPU_INFORMATION) -> tuple[str, ...]:
    """The instruction sets of this machine's CPU that INT8 products may use; none where the system does not tell.

    Args:
        information: as Linux writes it.
    """
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(sorted(INT8_FEATURES.intersection(flags)))


def cpu_difference(manifest: Manifest, here: Collection[str] | None = None) -> str | None:
    """Why a release may answer otherwise on this CPU than where it was verified, in one line; None if it will not.

    Args:
        manifest: of the release.
        here: what this CPU has, as `cpu_features` says; asked of the system when None.
    """
    here = cpu_features() if here is None else here
    origin = manifest.encoder
    if origin is None or not origin.needs_vnni or not VNNI.intersection(origin.cpu):
        return None
    if "avx2" not in here or VNNI.intersection(here):
        return None
    return (
        f"release {manifest.release} was verified on a CPU with VNNI, which this one lacks: its INT8 sums can overflow "
        "here; export it on this machine, or with SET=export.int8.reduce_range=true"
    )
