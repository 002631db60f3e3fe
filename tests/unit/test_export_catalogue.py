"""A newer catalogue, or a head that was taught, becomes the release after the one before."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from export_helpers import OVERRIDES, Shop

from continual.exporting import export_after
from export.catalogue import main as update_catalogue
from export.catalogue import release_before
from export.errors import ExportError
from export.kept_settings import overrides_of
from serving.journal import Journal
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.manifest import MANIFEST_NAME
from serving.releases import ReleaseStore
from training.derived_run import derive_run
from training.run import Run


@pytest.fixture
def shop(exported: Path, tmp_path: Path) -> Shop:
    """A domain with one release, whose graph was kept too."""
    shutil.copytree(exported, tmp_path / "shop")
    return Shop(tmp_path / "shop")


def test_where_the_live_releases_folder_is_gone_the_newest_goes_before(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = SimpleNamespace(number=7)
    monkeypatch.setattr(LiveRepository, "live_release", lambda *_: live)
    found = release_before(shop.layout, "shop")
    assert found is not None
    assert found.number == 1
    assert release_before(Layout(shop.var / "elsewhere"), "shop") is None


def test_a_catalogue_that_waits_for_a_deploy_is_not_made_again(
    shop: Shop, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def catalogue() -> Result:
        arguments = ["--config", str(shop.config), "--data", str(tiny_data), "--var", str(shop.var), "--shrink"]
        return CliRunner().invoke(update_catalogue, arguments)

    def made() -> list[str]:
        folders = (shop.releases, shop.var / "runs/shop")
        return sorted(path.name for folder in folders for path in folder.iterdir() if not path.name.startswith("."))

    live = SimpleNamespace(number=1, versions={})
    monkeypatch.setattr(LiveRepository, "live_release", lambda *_: live)
    first = catalogue()
    assert first.exit_code == 0, first.output
    there = made()
    assert len(there) == 4
    again = catalogue()
    assert again.exit_code == 0, again.output
    assert "release 2 is up to date" in again.output
    assert made() == there

    Journal(shop.layout.journal("shop")).write(2, 1, "deploy", ())
    Journal(shop.layout.journal("shop")).write(1, 2, "rollback", ())
    gone_back = catalogue()
    assert gone_back.exit_code == 1
    assert "so that no `deploy` makes that one live by the way" in gone_back.output
    assert made() == there

    items = tiny_data / "shop" / "items.csv"
    items.write_text(items.read_text().replace("plain", "dotted"))
    newer = catalogue()
    assert newer.exit_code == 0, newer.output
    assert (shop.releases / "3").is_dir()


def test_what_was_asked_of_an_export_is_kept_by_the_releases_after_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = shop.run.head()
    first = shop.export(shop.run, "export.int8.reduce_range=true", "export.verification_texts=7").release
    assert first.manifest.export_settings["int8"] == {"reduce_range": True}

    def derived(*_: object, **__: object) -> Run:
        return derive_run(shop.run, shop.var, reason="test", head=(weight + 1, bias))

    monkeypatch.setattr("export.catalogue.update_catalogue", derived)
    arguments = ["--config", str(shop.config), "--data", str(shop.var), "--var", str(shop.var), *OVERRIDES]
    kept = CliRunner().invoke(update_catalogue, arguments)
    assert f"encoder of release {first.number}" in kept.output
    changed = CliRunner().invoke(update_catalogue, [*arguments, "export.int8.reduce_range=false"])
    assert changed.exit_code == 0, changed.output

    def tuned(number: int, *asked: str) -> dict[str, object]:
        run = derive_run(shop.run, shop.var, reason="test", head=(weight + number, bias))
        return export_after(run, first, shop.config, (*OVERRIDES, *asked), shop.layout).manifest.export_settings

    store = ReleaseStore(shop.releases)
    after, other = (store.open(first.number + step).manifest.export_settings for step in (1, 2))
    assert after == first.manifest.export_settings == tuned(2)
    assert other == after | {"int8": {"reduce_range": False}} == tuned(3, "export.int8.reduce_range=false")


def test_a_release_of_before_its_settings_were_written_down_goes_by_the_config(shop: Shop) -> None:
    path = shop.releases / "1" / MANIFEST_NAME
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["export_settings"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert overrides_of(ReleaseStore(shop.releases).open(1)) == ("serving.mode=ensemble", "serving.engine=onnxruntime")


@pytest.mark.parametrize("asked", ["serving.mode=fused", "export.calibration_texts=none"])
def test_a_catalogue_that_cannot_be_exported_leaves_no_run(shop: Shop, tiny_data: Path, asked: str) -> None:
    wanted = "trt-fp16" if "mode" in asked else "fp32"
    arguments = ["--config", str(shop.config), "--data", str(tiny_data), "--var", str(shop.var)]
    refused = CliRunner().invoke(update_catalogue, [*arguments, "--precision", wanted, "--shrink", asked])
    assert refused.exit_code == 1, refused.output
    assert "Error" in refused.output
    assert [path.name for path in (shop.var / "runs/shop").iterdir()] == [shop.run.run_id]


def test_a_failed_export_of_a_catalogue_leaves_no_run(
    shop: Shop, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ExportError("the disk is full")

    monkeypatch.setattr("export.catalogue.export_release", full)
    arguments = ["--config", str(shop.config), "--data", str(tiny_data), "--var", str(shop.var), "--shrink"]
    refused = CliRunner().invoke(update_catalogue, arguments)
    assert "the disk is full" in refused.output
    assert [path.name for path in (shop.var / "runs/shop").iterdir()] == [shop.run.run_id]
    monkeypatch.undo()


def test_a_catalogue_that_another_command_overtook_stops_before_a_deploy(
    shop: Shop, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`deploy` would publish it over what a tuning taught meanwhile."""
    live = SimpleNamespace(number=1)
    monkeypatch.setattr(LiveRepository, "live_release", lambda *_: live)

    def export(run: Run, *_: object, **__: object) -> SimpleNamespace:
        live.number = 2
        return SimpleNamespace(release=SimpleNamespace(number=3, path=run.path), taken_from=None, is_new=True)

    monkeypatch.setattr("export.catalogue.export_release", export)
    arguments = ["--config", str(shop.config), "--data", str(tiny_data), "--var", str(shop.var), "--shrink"]
    stopped = CliRunner().invoke(update_catalogue, arguments)
    assert stopped.exit_code == 1
    assert stopped.output.splitlines()[-1] == (
        "Error: release 3: it was made to follow release 1, but release 2 is live by now: it was left alone; "
        "run `make catalogue` again, which starts from what answers"
    )
    assert len(list((shop.var / "runs/shop").iterdir())) == 2, "release and run stay"
