"""An export on a disk that is full, or nearly so."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from export_helpers import Shop

from export.errors import ExportError
from training.derived_run import derive_run


@pytest.fixture
def shop(exported: Path, tmp_path: Path) -> Shop:
    """A domain with one release, whose graph was kept too."""
    shutil.copytree(exported, tmp_path / "shop")
    return Shop(tmp_path / "shop")


def test_a_disk_with_room_for_the_release_alone_gets_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = shop.var / "cache/graphs/shop-fp32.onnx"
    kept.unlink()

    def with_room_for_one(source: Path, target: Path) -> None:
        if kept.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        shutil.copyfile(source, target)

    monkeypatch.setattr("export.release_builder.link_or_copy", with_room_for_one)
    assert shop.export(shop.run, "serving.length_buckets=[8]").release.number == 2
    assert kept.exists(), "left for the next precision, once the release is there"


def numbers_do_not_fit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    def full(*_: object) -> None:
        raise OSError("4 requested and 0 written")

    monkeypatch.setattr("serving.steps.catalogue.np.save", full)
    return rf"^{folder}/releases/shop: the disk did not take all of a file \(4 requested and 0 written\)"


def code_does_not_fit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    (folder / "steps").mkdir()
    (folder / "steps/ranking.py").symlink_to("/nowhere")  # what cannot be copied, one file of many
    monkeypatch.setattr("export.step_code.STEPS_CODE", folder / "steps")
    return r"ranking\.py: \[Errno 2\] No such file or directory: '[^']+'"


def tokenizer_does_not_fit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    scratch = folder / "scratch"
    scratch.mkdir()
    (scratch / "tokenizer.json").symlink_to("/dev/full")
    monkeypatch.setattr("export.release.tempfile", SimpleNamespace(TemporaryDirectory=lambda **_: nullcontext(scratch)))
    return rf"^{folder}/releases/shop: No space left on device"


def index_does_not_fit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setattr("export.item_index.CODES", "/dev/full")
    return rf"^{folder}/releases/shop: No space left on device"


@pytest.mark.parametrize(
    "harm",
    [numbers_do_not_fit, code_does_not_fit, tokenizer_does_not_fit, index_does_not_fit],
    ids=lambda harm: harm.__name__,
)
def test_what_does_not_fit_on_the_disk_is_one_line_that_says_what_to_do(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, harm: Callable[[pytest.MonkeyPatch, Path], str]
) -> None:
    settings = ["serving.topk.index=approximate", "serving.topk.recall=0.01"] * (harm is index_does_not_fit)
    if settings:
        pytest.importorskip("faiss")
    message = harm(monkeypatch, shop.var)
    weight, bias = shop.run.head()
    run = derive_run(shop.run, shop.var, reason="test", head=(weight + 1, bias))
    with pytest.raises(ExportError, match=message) as caught:
        shop.export(run, *settings, reuse=harm is not tokenizer_does_not_fit)
    assert caught.value.message.endswith("; no release was made: free some space or check the rights")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert [path.name for path in shop.releases.glob("[0-9]*")] == ["1"]
