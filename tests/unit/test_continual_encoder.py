"""A turn of the loop in which the encoder learns too, by LoRA on a tiny encoder."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from continual_helpers import Shop

from continual.command import main
from continual.errors import ContinualError, RefusedError
from serving.releases import Release
from training.embedding_cache import EmbeddingCache
from training.encoder_source import weights_sha256
from training.errors import DivergedError
from training.model import InstructionModel
from training.run import Run
from training.tuning_trainer import Checkpoints

LORA = (
    "continual.encoder=lora",
    "continual.lora.learning_rate=0.003",
    "continual.lora.batch_size=16",
    "continual.lora.dropout=0",
    "continual.budget=50",  # there are six test instructions, and a random encoder does not know words from letters
)
HARMFUL = (
    "continual.replay_ratio=0.01",
    "continual.replay=0",
    "continual.replay_items=0",
    "continual.budget=1",
)


class TorchEncoder:
    """Stands where a release's ONNX graph is opened: its run's own encoder."""

    def __init__(self, release: Release, run: Run) -> None:
        self._run, self._model = run, run.load_model()
        self.hidden_size = self._model.hidden_size

    def cache(self, var: Path) -> EmbeddingCache:
        record = self._run.manifest.encoder
        return EmbeddingCache.below(var, self._run.encoder, record.pooling, record.max_length)

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        return self._model.embed(texts, batch_size, progress)


@pytest.fixture
def shop(tiny_config: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr("continual.old_skill.release_encoder", TorchEncoder)
    model = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=3)
    return Shop(tiny_config, tmp_path / "var", tiny_encoder, lambda texts: model.embed(list(texts)))


def run_of(shop: Shop, release: Release | None) -> Run:
    assert release is not None
    return Run.open(shop.var / "runs" / "shop" / release.manifest.run_id)


def best_label(run: Run, text: str) -> str:
    weight, bias = run.head()
    return run.labels[int((run.load_model().embed([text])[0] @ weight.T + bias).argmax())]


def result_of(run: Run) -> list[object]:
    files = ("head.safetensors", "item_vectors.safetensors", "metrics.json", "continual.md")
    return [run.manifest.encoder.sha256, *((run.path / name).read_bytes() for name in files)]


def left_over(shop: Shop) -> list[Path]:
    return sorted((shop.var / "cache" / "tuning").glob("*"))


def test_encoder_and_head_learn_the_phrase(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.send(40, "drip", "id-hat1")
    assert best_label(shop.run, "show me a drip") != "Hats"
    turn = shop.tuner(*LORA).turn()
    run = run_of(shop, turn.release)
    assert best_label(run, "show me a drip") == "Hats"
    compared = run.manifest.metrics["continual"]
    assert compared["new"]["before"] < 0.5 < compared["new"]["after"]
    assert compared["old"]["after"] >= 0.5
    digest = weights_sha256(run.path / "encoder")
    assert run.manifest.encoder.sha256 == digest != shop.run.manifest.encoder.sha256
    assert weights_sha256(shop.run.path / "encoder") == shop.run.manifest.encoder.sha256, "the live run stays as it is"
    texts = [item.text for item in run.catalogue()]
    np.testing.assert_allclose(run.item_vectors(), run.load_model().embed(texts), atol=1e-5)
    assert np.abs(run.item_vectors() - shop.run.item_vectors()).max() > 1e-3
    assert run.catalogue() == shop.run.catalogue()
    assert run.score_weights == shop.run.score_weights
    origin = run.manifest.derived_from
    assert origin is not None
    assert (origin.reason, origin.details["encoder"], origin.details["until"]) == ("continual tuning", "lora", 40)
    assert run.manifest.metrics["encoder_tuning"]["method"] == "lora"
    assert "The encoder was re-tuned too (lora" in (run.path / "continual.md").read_text(encoding="utf-8")
    assert left_over(shop) == []
    assert shop.tuner(*LORA).turn().line == "no feedback since event 40: nothing to learn", "release 2 is the newest"

    shop.make_live(Release(shop.store.folder / "2"), monkeypatch)  # and the next turn starts from the new encoder
    shop.send(40, "kicks", "id-shoe1")
    after = run_of(shop, shop.tuner("continual.budget=50").turn().release)
    assert after.manifest.encoder.sha256 == digest
    assert best_label(after, "I want a kicks") == "Shoes"


def test_a_turn_that_costs_old_skill_is_refused_and_leaves_nothing(shop: Shop) -> None:
    for word in ("hat", "shirt"):  # many people say that a hat is a shoe
        shop.send(60, word, "id-shoe1", person=lambda number: f"person {number}")
    runs = sorted((shop.var / "runs" / "shop").iterdir())
    caches = sorted((shop.var / "cache" / "embeddings").glob("*"))
    with pytest.raises(RefusedError, match="accuracy on old held-out instructions falls by more than 1 points"):
        shop.tuner(*LORA, *HARMFUL).turn()
    assert (sorted((shop.var / "runs" / "shop").iterdir()), shop.store.numbers()) == (runs, [1])
    assert left_over(shop) == []
    assert len(sorted((shop.var / "cache" / "embeddings").glob("*"))) == len(caches) + 1, "the live encoder's"
    assert "up to which nothing came of it" in shop.tuner(*LORA, *HARMFUL).turn().line


def test_killed_after_an_epoch_and_after_export_it_comes_to_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.make_live(shop.release, monkeypatch)
    shop.send(40, "drip", "id-shoe1")
    on_save = Checkpoints.on_save

    def killed(*arguments: object, **named: object) -> None:
        on_save(*arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_save", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.tuner(*LORA).turn()
    assert len(left_over(shop)) == 1
    shop.fail_after_export = True
    with pytest.raises(KeyboardInterrupt):
        shop.tuner(*LORA).turn()
    assert any("going on from checkpoint" in line for line in shop.lines)
    runs, releases = sorted((shop.var / "runs" / "shop").iterdir()), shop.store.numbers()
    shop.fail_after_export = False
    run = run_of(shop, shop.tuner(*LORA).turn().release)
    assert any("tuned before, used again" in line for line in shop.lines)
    assert (sorted((shop.var / "runs" / "shop").iterdir()), shop.store.numbers()) == (runs, releases)
    assert left_over(shop) == []

    monkeypatch.setattr("continual.tuner.Tuner._derived", lambda *_: None)  # else this very run would be found
    again = run_of(shop, shop.tuner(*LORA, "continual.max_events=20001").turn().release)
    assert again.run_id != run.run_id
    assert result_of(again) == result_of(run), "the same feedback, without a kill, comes to the same bytes"


def test_what_cannot_be_tuned_is_an_error_and_nothing_is_made(shop: Shop) -> None:
    shop.send(40, "drip", "id-shoe1")
    with pytest.raises(DivergedError, match="not finite"):
        shop.tuner(*LORA, "continual.lora.learning_rate=1e30").turn()
    assert shop.store.numbers() == [1]


def test_wrong_settings_are_one_line(shop: Shop) -> None:
    arguments = ["tune", "--config", str(shop.config), "--var", str(shop.var)]
    for override, said in (
        ("continual.encoder=adalora", "config: continual.encoder: Input should be 'frozen' or 'lora'"),
        ("continual.lora.rank=0", "config: continual.lora.rank: Input should be greater than or equal to 1"),
        ("continual.lora.bugs=1", "config: continual.lora.bugs: Extra inputs are not permitted"),
    ):
        result = CliRunner().invoke(main, [*arguments, override])
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert said in result.output
    with pytest.raises(
        ContinualError, match=r"lora makes an encoder of shop's own, but export\.encoder_from takes .*news"
    ):
        shop.tuner("continual.encoder=lora", "export.encoder_from=news")


def test_torch_stays_unloaded_where_the_encoder_is_frozen(tiny_config: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from continual.command import open_tuner\n"
        f"open_tuner(Path({str(tiny_config)!r}), Path({str(tmp_path)!r}), (), print)\n"
        "assert not {'torch', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
