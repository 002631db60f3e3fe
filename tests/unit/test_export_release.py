"""From a run to a release: what is verified beside the graph, what a killed or damaged export leaves, and for whom."""

import fcntl
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from export_helpers import INSTRUCTIONS, ITEMS, OVERRIDES, Shop, made_shop
from tokenizers import Tokenizer

from export.__main__ import main as export
from export.errors import ExportError, VerificationError
from export.head_graph import export_head
from export.kept_settings import served_as
from export.release import Exported, export_release
from export.reuse import ENCODER_CODE
from export.served_parts import check_tokens
from serving.canary.journal import CanaryJournal
from serving.journal import Journal
from serving.manifest import MANIFEST_NAME
from serving.steps.text_encoder import Head
from serving.steps.tokenization import InstructionTokenizer
from training.config_loading import load_config
from training.derived_run import derive_run

GRAPH = "models/shop_encoder/1/model.onnx"


@pytest.fixture
def shop(exported: Path, tmp_path: Path) -> Shop:
    """A domain with one release, whose graph was kept too."""
    shutil.copytree(exported, tmp_path / "shop")
    return Shop(tmp_path / "shop")


# --- what is verified beside the graph ------------------------------------------------------------------------------


def test_what_goes_with_the_encoder_stands_in_the_report(shop: Shop) -> None:
    page = (shop.releases / "1/verification.md").read_text(encoding="utf-8")
    assert "### item vectors, head and tokens: passed\n\n8 texts\n" in page
    manifest = json.loads((shop.releases / "1" / MANIFEST_NAME).read_text(encoding="utf-8"))
    checks = manifest["verification"]["item vectors, head and tokens"]
    assert checks["minimum cosine of an item's vector and its text's"] > 0.9999
    assert checks["texts with other tokens than at training"] == 0
    assert checks["difference of the head as it is served"] < 1e-5


def test_a_release_carries_how_much_of_a_history_counts(shop: Shop) -> None:
    header = json.loads((shop.releases / "1/models/shop_topk/1/catalogue.json").read_text(encoding="utf-8"))
    history, training = shop.run.config.history, shop.run.config.training
    assert (header["exclude_history"], header["max_history"]) == (history.exclude_seen, training.max_history)


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rolled": lambda vectors: np.roll(vectors, 1, axis=0),
    "zeros": np.zeros_like,
    "one of zeros": lambda vectors: vectors * (np.arange(len(vectors)) != 7)[:, None],
    "three times as long": lambda vectors: vectors * 3,
    "of another encoder": lambda vectors: vectors[:, ::-1],
}


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_item_vectors_that_are_not_the_encoders_are_refused(shop: Shop, fault: str, reuse: bool) -> None:
    run = shop.run_with(FAULTS[fault](shop.run.item_vectors()).astype(np.float32))
    with pytest.raises(VerificationError, match="are not those of its encoder and its items: make a new run"):
        shop.export(run, reuse=reuse)
    assert [path.name for path in shop.releases.glob("[0-9]*")] == ["1"]
    assert "FAILED" in (shop.var / "logs/verification-shop-fp32.md").read_text(encoding="utf-8")


def test_a_tokenizer_that_cuts_texts_otherwise_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        if target.name == "tokenizer.json":
            tokenizer = Tokenizer.from_file(str(target))
            tokenizer.normalizer = None
            tokenizer.pre_tokenizer = None
            tokenizer.save(str(target))

    monkeypatch.setattr("export.release_builder.link_or_copy", other)
    weight, bias = shop.run.head()
    with pytest.raises(VerificationError, match="texts with other tokens than at training is 8"):
        shop.export(derive_run(shop.run, shop.var, reason="test", head=(weight + 1, bias)))


@pytest.mark.parametrize("mode", ["ensemble", "fused"])
def test_texts_are_served_as_long_as_they_were_at_training(shop: Shop, mode: str) -> None:
    """The run reads 32 tokens, whatever the longest bucket of the config is."""
    shorter = "serving.length_buckets=[8]"
    release = shop.export(shop.run, shorter, f"serving.mode={mode}").release
    texts = [one.text for one in shop.run.instructions()]
    trained = shop.run.load_model().tokenizer
    wanted = [encoding.ids for encoding in trained.encode_batch(texts)]
    assert max(map(len, wanted)) > 8
    [file] = release.models.rglob("tokenizer.json")
    limit = served_as(release).max_length
    assert limit == 32
    assert InstructionTokenizer(file, [limit]).encode(texts) == wanted
    assert check_tokens(shop.run, file, (8, 32), texts).passed
    assert not check_tokens(shop.run, file, (8,), texts).passed


@pytest.mark.parametrize("mode", ["ensemble", "fused"])
def test_a_head_that_was_written_wrongly_is_refused(shop: Shop, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_graph(weight: np.ndarray, bias: np.ndarray, path: Path) -> None:
        export_head(weight[::-1], bias, path)

    monkeypatch.setattr("export.release_builder.export_head", reversed_graph)
    monkeypatch.setattr("export.release_builder.Head", lambda weight, bias: Head(weight[::-1], bias))
    with pytest.raises(VerificationError, match="difference of the head as it is served"):
        shop.export(shop.run, f"serving.mode={mode}", reuse=False)


def test_a_text_without_a_token_is_exported_and_a_run_of_them_is_not(tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder)
    tokenizer = json.loads((encoder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None  # as GPT-2's: no special token round a text
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[^ -~]"}, "content": ""}
    (encoder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    silent = replace(INSTRUCTIONS[1], instruction_id="silent", text="青い")
    (tmp_path / "one").mkdir()
    items = [*ITEMS, replace(ITEMS[0], item_id="silent", text="赤い")]
    shop = made_shop(tmp_path / "one", encoder, [*INSTRUCTIONS, silent], items)
    for mode in ("ensemble", "fused"):
        assert shop.export(shop.run, f"serving.mode={mode}").is_new
    (tmp_path / "all").mkdir()
    shop = made_shop(tmp_path / "all", encoder, [silent])
    with pytest.raises(ExportError, match="Not one of the 1 texts to verify on has a token"):
        shop.export(shop.run)


def test_a_run_without_instructions_says_what_to_do(tiny_encoder: Path, tmp_path: Path) -> None:
    shop = made_shop(tmp_path, tiny_encoder, [])
    with pytest.raises(ExportError, match=r"has no instructions.*add some to the dataset .* and train again"):
        shop.export(shop.run)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_what_was_refused_in_any_engine_is_not_said_to_be_taken(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, taken = "encoder-int8.onnx", "encoder-int8-down-fp32.onnx"
    checks = {"mean cosine": 1.0}
    on_the_way = ["encoder-fp32.onnx", f"{refused} in openvino"]
    said = dict.fromkeys([*on_the_way, taken, f"{taken} in openvino", "item vectors, head and tokens"], checks)
    release = SimpleNamespace(number=2, path="there", manifest=SimpleNamespace(verification=said))
    monkeypatch.setattr(
        "export.release.export_release", lambda *_, **__: SimpleNamespace(release=release, is_new=True, taken_from=None)
    )
    asked = ["--config", str(shop.config), "--data", str(shop.var), "--var", str(shop.var), "--run", shop.run.run_id]
    printed = CliRunner().invoke(export, asked).output
    for graph in said:
        assert f"  {graph} ({'on the way' if graph in on_the_way else 'taken'}): mean cosine 1" in printed


# --- what is there already ------------------------------------------------------------------------------------------


def test_a_whole_release_is_up_to_date_until_it_is_to_be_made_anew(shop: Shop) -> None:
    assert not shop.export(shop.run).is_new
    assert not shop.said
    again = shop.export(shop.run, reuse=False)
    assert (again.is_new, again.release.number) == (True, 2)
    assert again.taken_from is None


def another_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("export.reuse.library_version", lambda name: f"newer {name}")


def another_tokenizer_code(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    changed = folder / "tokenizer.py"
    [at] = [row for row, path in enumerate(ENCODER_CODE) if path.parts[-2:] == ("training", "tokenizer.py")]
    changed.write_bytes(ENCODER_CODE[at].read_bytes() + b"# other\n")
    monkeypatch.setattr("export.reuse.ENCODER_CODE", (*ENCODER_CODE[:at], changed, *ENCODER_CODE[at + 1 :]))


@pytest.mark.parametrize("change", [another_library, another_tokenizer_code])
def test_what_makes_the_encoder_makes_another_release(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch, Path], None]
) -> None:
    change(monkeypatch, shop.var)
    assert (shop.export(shop.run).is_new, shop.export(shop.run).is_new) == (True, False)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("name", [GRAPH, "instructions.jsonl", MANIFEST_NAME])
def test_a_damaged_release_is_exported_again(shop: Shop, name: str) -> None:
    cut(shop.releases / "1" / name)
    again = shop.export(shop.run)
    assert (again.is_new, again.release.number) == (True, 2)
    assert "release 1 is damaged, it counts as none" in shop.said[0]
    again.release.manifest.verify(again.release.path)
    assert not shop.export(shop.run).is_new


def test_a_damaged_manifest_does_not_make_an_older_release_the_newest(shop: Shop) -> None:
    weight, bias = shop.run.head()
    second = shop.export(derive_run(shop.run, shop.var, reason="test", head=(weight + 1, bias))).release
    cut(second.path / MANIFEST_NAME)
    assert shop.export(shop.run).release.number == 3, "`deploy` would open release 2"


def test_what_a_killed_export_left_is_removed(shop: Shop) -> None:
    left = shop.releases / ".graphs-killed"
    left.mkdir()
    (left / "encoder-fp32.onnx").write_bytes(b"half")
    assert not shop.export(shop.run).is_new
    assert not left.exists()


def test_a_second_export_says_what_it_waits_for(shop: Shop) -> None:
    told = threading.Event()
    done: list[Exported] = []
    config = load_config(shop.config, OVERRIDES)

    def say(line: str) -> None:
        shop.said.append(line)
        told.set()

    waiting = threading.Thread(
        target=lambda: done.append(export_release(shop.run, config, shop.layout, "fp32", say=say))
    )
    with (shop.releases / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        waiting.start()
        assert told.wait(60)
        assert not done
    waiting.join()
    assert len(done) == 1
    assert "another export of shop is running" in shop.said[0]


def test_the_reports_of_all_that_was_tried_are_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {"top_k_overlap": 1.1}
    for name in ("reuse", "graphs"):
        module = __import__(f"export.{name}", fromlist=["INT8_BUDGET"])
        monkeypatch.setattr(module, "INT8_BUDGET", module.INT8_BUDGET.model_copy(update=strict))
    config = load_config(shop.config, OVERRIDES)
    with pytest.raises(VerificationError, match=r"encoder-int8-down-fp32\.onnx failed") as caught:
        export_release(shop.run, config, shop.layout, "int8")
    kept = (shop.var / "logs/verification-shop-int8.md").read_text(encoding="utf-8")
    assert str(shop.var / "logs/verification-shop-int8.md") in caught.value.message
    for graph in ("encoder-fp32.onnx: passed", "encoder-int8.onnx: FAILED", "encoder-int8-down-fp32.onnx: FAILED"):
        assert f"### {graph}" in kept


# --- the next number ------------------------------------------------------------------------------------------------


def answered(shop: Shop) -> None:
    Journal(shop.layout.journal("shop")).write(1, None, "deploy")


def was_a_canary(shop: Shop) -> None:
    CanaryJournal(shop.layout.canary_journal("shop")).write(1, "up", 0.1)


def is_one_step_away(shop: Shop) -> None:
    (shop.layout.live / "shop" / "1").mkdir(parents=True)


def is_the_canary(shop: Shop) -> None:
    (shop.layout.live / "shop_canary" / "1").mkdir(parents=True)


@pytest.mark.parametrize("known", [answered, was_a_canary, is_one_step_away, is_the_canary])
def test_the_number_of_a_removed_release_is_not_used_again(shop: Shop, known: Callable[[Shop], None]) -> None:
    """Else the live repository would hold other files under it, or journal and feedback would speak of two releases."""
    known(shop)
    shutil.rmtree(shop.releases / "1")
    assert shop.export(shop.run).release.number == 2


# --- a newer catalogue ----------------------------------------------------------------------------------------------
