"""Whether a release's engine answers: where it belongs, once nothing without one is loaded beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import canary_helpers
import pytest
from canary_helpers import FakeTriton
from deploy_helpers import ENDPOINTS, Shop
from engine_releases import BUILT, engine_release, variant
from live_repository_helpers import Crash, listed, publish
from serving_helpers import build_release
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.canary.lifecycle import take_down
from serving.deploy import roll_back
from serving.engine_variants import take_out_misfits
from serving.engines.fingerprint import GpuError
from serving.errors import PublishError, ServerError
from serving.healing import Healer
from serving.layout import Layout
from serving.live_repository import LiveRepository, parse_config
from serving.recovery import recover
from serving.server import Server, ServerState


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """A machine whose GPU has a driver of this version, at first the engine's own; None: it has no GPU."""

    def install(driver: str | None) -> None:
        def in_use() -> dict[str, str]:
            if driver is None:
                raise GpuError("nvidia-smi finds no GPU 0")
            return {"gpu": BUILT.gpu, "compute_capability": BUILT.compute_capability, "driver": driver}

        monkeypatch.setattr("serving.engine_variants.gpu_in_use", in_use)

    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=BUILT.tensorrt))
    install(BUILT.driver)
    return install


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Releases 1 and 3 have no engine; 4 has one, 5 is a new top-k step on the same encoder, 6 has another."""
    shop = Shop(Layout(tmp_path / "var"), monkeypatch)
    folder = shop.layout.releases("shop")
    for number, encoder in ((4, 4), (5, 4), (6, 6)):
        shop.releases[number] = engine_release(folder, number, encoder=encoder, other="topk")
    return shop


def refuse(shop: Shop, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the server load no encoder by an engine."""

    def load(model: str, **_: Any) -> None:
        if model == "shop_encoder" and variant(shop.repository).exists():
            raise error
        shop.loaded.append(model)

    client = grpc.InferenceServerClient("").__enter__()
    monkeypatch.setattr(client, "load_model", load)


def test_the_variant_is_live_only_where_the_engine_belongs(tmp_path: Path) -> None:
    repository, release = LiveRepository(tmp_path / "live"), engine_release(tmp_path / "releases")
    repository.stage(release, variants=False)
    assert not variant(repository).exists()  # Triton falls back to config.pbtxt
    assert (repository.folder / "shop_encoder" / "config.pbtxt").is_file()
    assert repository.stage(release) == ["shop_encoder"]
    config = parse_config(variant(repository).read_text())
    assert (config.backend, list(config.version_policy.specific.versions)) == ("tensorrt", [1])
    assert config.input[0].allow_ragged_batch, "or requests of another length would break its batches up"
    assert repository.stage(release) == []  # unchanged files are left alone, or Triton would reload
    assert repository.stage(release, variants=False) == ["shop_encoder"]
    assert not variant(repository).exists()


def test_all_versions_that_are_loaded_have_an_engine(tmp_path: Path) -> None:
    """Triton loads all listed versions with one config, and an old one has no model.plan."""
    repository = LiveRepository(tmp_path / "live")
    old = build_release(tmp_path / "releases", 1, {"encoder": (1, "old"), "head": (1, "a")})
    repository.stage(old)
    repository.switch(old)
    new = engine_release(tmp_path / "releases", 2)
    repository.stage(new)
    assert not variant(repository).exists()
    repository.switch(new)
    newer = engine_release(tmp_path / "releases", 3)
    repository.stage(newer)
    assert list(parse_config(variant(repository).read_text()).version_policy.specific.versions) == [2, 3]
    repository.discard(newer)
    assert list(parse_config(variant(repository).read_text()).version_policy.specific.versions) == [2]


def test_an_engine_waits_for_the_release_before_and_says_so_until_it_is_deployed_once_more(shop: Shop) -> None:
    shop.deploy(1)
    [said] = shop.deploy(4).warnings
    assert "release 4's engine waits" in said
    assert "shop_encoder version 1, which has none" in said
    assert "`make deploy RELEASE=4` once more" in said
    assert (variant(shop.repository).exists(), listed(shop.repository, "shop_encoder")) == (False, [1, 4])
    shop.loaded.clear()
    done = shop.deploy(4)
    assert (done.action, done.warnings, shop.loaded[0]) == ("published", (), "shop_encoder")
    assert (variant(shop.repository).exists(), listed(shop.repository, "shop_encoder")) == (True, [4])
    assert shop.deploy(4).action == "unchanged"
    assert (shop.layout.live / "shop_encoder" / "1").is_dir(), "one step away, though not loaded"
    assert roll_back(shop.layout, "shop").release == 1
    assert (variant(shop.repository).exists(), shop.live()) == (False, 1)
    [said] = roll_back(shop.layout, "shop").warnings
    assert "release 4's engine waits" in said


def test_a_release_on_the_same_encoder_lets_its_engine_answer(shop: Shop) -> None:
    for number in (1, 4):
        shop.deploy(number)
    assert shop.deploy(5).warnings == ()
    assert (variant(shop.repository).exists(), listed(shop.repository, "shop_encoder")) == (True, [4])


def test_an_engine_that_does_not_belong_is_said_to_be_so_and_not_to_wait(shop: Shop, gpu: Any) -> None:
    gpu("570.86")
    [said] = shop.deploy(4).warnings
    assert "driver 550.54, here 570.86; the ONNX graph answers instead" in said
    gpu("550.54")
    assert (shop.deploy(4).action, variant(shop.repository).exists()) == ("published", True)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("failing", [1, 6])
def test_the_live_engine_answers_again_after_a_publish_that_failed(shop: Shop, failing: int, runs: bool) -> None:
    shop.deploy(4)
    if not runs:
        shop.crash()
    shop.broken = {failing}
    shop.loaded.clear()
    with pytest.raises((PublishError, ServerError)):
        shop.deploy(failing)
    assert shop.live() == 4
    assert list(parse_config(variant(shop.repository).read_text()).version_policy.specific.versions) == [4]
    assert shop.loaded.count("shop_encoder") == (0 if not runs else 2 if failing == 1 else 1), "beside, and back"
    assert shop.repository.marks.all() == []


def test_a_redeploy_whose_engine_fails_leaves_it_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 4):
        shop.deploy(number)
    with monkeypatch.context() as patch:
        refuse(shop, patch, InferenceServerException("no memory on the GPU"))
        with pytest.raises(PublishError, match="no memory on the GPU; release 4 still answers"):
            shop.deploy(4)
    assert (shop.live(), variant(shop.repository).exists(), shop.repository.marks.all()) == (4, False, [])
    assert shop.loaded[-1] == "shop_encoder", "as it is without"


def test_a_redeploy_that_is_killed_on_its_way_to_the_engine_is_ended(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 4):
        shop.deploy(number)
    with monkeypatch.context() as patch:
        patch.setattr("serving.deploy.load_steps", lambda *_: (_ for _ in ()).throw(Crash()))
        patch.setattr("serving.deploy.take_out", lambda *_, **__: [])
        with pytest.raises(Crash):
            shop.deploy(4)
    shop.loaded.clear()
    assert recover(shop.layout) == ["the publish of shop release 4 was killed after it answered: kept"]
    assert (shop.live(), variant(shop.repository).exists(), "shop_encoder" in shop.loaded) == (4, True, True)
    assert [one.release for one in shop.journal()] == [1, 4]


def test_a_killed_publish_without_an_engine_gives_the_live_one_its_own_back(shop: Shop) -> None:
    shop.deploy(4)
    shop.repository.stage(shop.releases[1])
    assert not variant(shop.repository).exists()
    assert recover(shop.layout) == ["the publish of shop release 1 was killed: taken back"]
    assert (shop.live(), variant(shop.repository).exists(), shop.loaded[-2:]) == (
        4,
        True,
        ["shop_encoder", "shop_topk"],
    )


def test_a_server_starts_without_engines_whose_gpu_is_gone(shop: Shop, gpu: Any) -> None:
    shop.deploy(4)
    assert take_out_misfits(shop.repository) == []
    assert variant(shop.repository).exists()
    gpu(None)
    [said] = take_out_misfits(shop.repository)
    assert said.startswith("shop_encoder: the release's engine cannot run here: nvidia-smi finds no GPU 0")
    assert not variant(shop.repository).exists()
    assert take_out_misfits(shop.repository) == []


def test_a_server_that_does_not_start_with_an_engine_is_started_without(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_until_ready(*_: Any) -> None:
        if variant(shop.repository).exists():
            raise ServerError("tritonserver ended while it started: no memory on the GPU")

    shop.deploy(4)
    shop.crash()
    monkeypatch.setattr(Server, "wait_until_ready", wait_until_ready)
    [said] = Healer(shop.layout).look()
    assert "server started afresh" in said
    assert shop.server.state() is not None
    assert (shop.live(), variant(shop.repository).exists()) == (4, False)
    assert "started without the engines of shop_encoder: tritonserver ended" in caplog.text


def test_a_canary_takes_the_live_engine_away_says_so_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "var")
    repository = LiveRepository(layout.live)
    live = engine_release(layout.releases("shop"), 1)
    other = build_release(layout.releases("shop"), 2, {"encoder": (2, "int8"), "head": (1, "head1")})
    publish(repository, live)
    triton, loaded = FakeTriton(repository), []
    state = ServerState(pid=1, identity="running", started="2026-01-01T00:00:00+00:00", endpoints=ENDPOINTS)
    monkeypatch.setattr(Server, "state", lambda _: state)
    monkeypatch.setattr(grpc, "InferenceServerClient", triton)
    monkeypatch.setattr("serving.canary.lifecycle.load_steps", lambda *_: None)
    monkeypatch.setattr(triton, "load_model", lambda model, **_: loaded.append(model))
    shop = canary_helpers.Shop(layout, triton, {1: live, 2: other})
    [said] = shop.put_up().warnings
    assert said.startswith("release 1, which is live, answers by its ONNX graph as long as the canary is up")
    assert not variant(repository).exists()
    loaded.clear()
    take_down(layout, "shop")
    assert (variant(repository).exists(), listed(repository, "shop_encoder")) == (True, [1])
    assert loaded == ["shop_encoder"]
