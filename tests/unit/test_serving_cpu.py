"""What a release's manifest and the CPU that is to serve it make of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_helpers import manifest_of

from serving.cpu import cpu_difference, cpu_features
from serving.manifest import EncoderOrigin, Manifest

WITH_VNNI = ("avx2", "avx512_vnni", "avx512bw")


def release(folder: Path, cpu: tuple[str, ...], *, needs_vnni: bool = True) -> Manifest:
    origin = EncoderOrigin(fingerprint="f", release=1, texts="t", cpu=cpu, needs_vnni=needs_vnni)
    return manifest_of(folder, "shop", 3, {}).model_copy(update={"encoder": origin})


def test_a_cpu_without_vnni_is_told_of_a_release_that_was_verified_with_it(tmp_path):
    found = cpu_difference(release(tmp_path, WITH_VNNI), ("avx2", "avx512bw"))
    assert found is not None
    assert "release 3 was verified on a CPU with VNNI, which this one lacks" in found
    assert "export.int8.reduce_range=true" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("exported", "here", "needs_vnni"),
    [
        (WITH_VNNI, ("avx2", "avx_vnni"), True),  # another kind of VNNI
        (("avx2",), ("avx2",), True),  # verified with the same sums
        (WITH_VNNI, ("avx2",), False),  # 7 bits, or no INT8 at all
        (WITH_VNNI, (), True),  # no x86, or a system that does not tell
        ((), ("avx2",), True),
    ],
)
def test_nothing_is_said_where_nothing_differs(tmp_path, exported, here, needs_vnni):
    assert cpu_difference(release(tmp_path, exported, needs_vnni=needs_vnni), here) is None


def test_releases_from_before_cpus_were_written_down(tmp_path):
    assert cpu_difference(manifest_of(tmp_path, "shop", 1, {}), ("avx2",)) is None


def test_features_are_read_as_linux_writes_them(tmp_path):
    information = tmp_path / "cpuinfo"
    information.write_text("processor\t: 0\nflags\t\t: fpu sse4_1 avx2 avx512_vnni\nbugs\t\t: none\n")
    assert cpu_features(information) == ("avx2", "avx512_vnni")
    information.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_features(information) == ()
    assert cpu_features(tmp_path / "missing") == ()
