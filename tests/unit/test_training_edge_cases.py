"""Datasets at the edge: hostile and multilingual texts, classes of one, labels absent from a split, equal scores."""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.config_loading import load_config
from training.metrics import label_accuracy, ranking_metrics
from training.model import InstructionModel
from training.plan import make_plan
from training.ranking import RankingExamples, fit_score_weights
from training.run import Run
from training.score import ZERO_SHOT, CatalogueSide, log_softmax
from training.train import train_run

FULL = ("encoder_tuning.method=full", "encoder_tuning.epochs=1")
HOSTILE = (
    "a very long wish " * 3_000,
    "x" * 50_000,
    "أريد شراء قميص أزرق",
    "אני רוצה חולצה \u202ekcab ot tnorf\u202c",
    "我想买一件蓝色的衬衫",
    "मुझे नीली कमीज़ चाहिए",
    "👩‍👩‍👧‍👦👍🏽🏳️‍🌈",
    "a\x01b\x07\x08\x1b[31mred\x7f\x85",
    "?!…—«»",
    "\u200b\u200d\ufeff.",
    "e\u0301" + "\u0301" * 500,
    '"; DROP TABLE items; --\r\n\t,,""',
    "[CLS] [SEP] [PAD] [MASK] </s> <|endoftext|>",
    "{text} %s $HOME ../../etc",
)


def _is_readable(text: str) -> bool:
    return bool(text.strip())


TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(_is_readable),
    st.text("?!.,;:'-()", min_size=1),
)


class Shop:
    """Writes a dataset and trains on it; everything of a training lies in its own folder."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self._folder, self._encoder = folder, encoder

    def train(
        self, items: list[tuple[str, str]], asks: list[tuple[str, str, str]], *overrides: str, keep: bool = False
    ) -> tuple[Run, list[str]]:
        """`items` are texts with labels, `asks` texts with labels and splits; the run and the lines it said."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        items_rows = [{"id": f"i{n}", "text": text, "label": label} for n, (text, label) in enumerate(items)]
        asks_rows = [{"text": text, "label": label, "split": split} for text, label, split in asks]
        for name, rows in (("items", items_rows), ("asks", asks_rows)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        columns = {"text": "text", "label": "label"}
        catalogue = {"file": "items.jsonl", "item_id": "id", "title": "text", **columns}
        instructions = {"file": "asks.jsonl", "split": "split", **columns}
        if keep:
            instructions["labels_without_items"] = "keep"
        tree = {
            "domain": "edge",
            "sources": [{"name": "main", "catalogue": catalogue, "instructions": instructions}],
            "encoder": {"name": str(self._encoder), "max_length": 32},
            "training": {"epochs": 5, "weight_decays": [0.0]},
        }
        (folder / "edge.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        said: list[str] = []
        run = train_run(make_plan(load_config(folder / "edge.yaml", overrides), folder, folder / "var"), said.append)
        return run, said


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> Shop:
    return Shop(tmp_path, tiny_encoder)


def floats(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from floats(value)
    elif isinstance(tree, float):
        yield tree


def check(run: Run) -> None:
    """Vectors of length 1, a head without NaN, finite metrics."""
    assert all(math.isfinite(value) for value in floats(run.manifest.metrics))
    np.testing.assert_allclose(np.linalg.norm(run.item_vectors(), axis=1), 1, atol=1e-5)
    head = run.load_model().head
    assert np.isfinite(head.weight.detach().numpy()).all()
    assert np.isfinite(head.bias.detach().numpy()).all()


@pytest.fixture(scope="module")
def model(tiny_encoder: Path) -> InstructionModel:
    return InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_any_text_has_a_vector_that_depends_on_it_alone(model: InstructionModel, texts: list[str]) -> None:
    vectors = model.embed(texts, batch_size=4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.embed(texts[::-1], batch_size=2)[::-1], vectors, atol=1e-5)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXTS, min_size=8, max_size=8), shots=st.sampled_from(["null", "0", "1"]))
def test_any_text_may_be_an_instruction_or_an_item(shop: Shop, texts: list[str], shots: str) -> None:
    items = [(text, ("A", "B")[n % 2]) for n, text in enumerate(texts[:4])]
    asks = [(text, ("A", "B")[n % 2], ("train", "train", "validation", "test")[n]) for n, text in enumerate(texts[4:])]
    run, _ = shop.train(items, asks, f"training.shots={shots}")
    check(run)
    assert [item.text for item in run.catalogue()] == [text.strip() for text, _ in items]


def test_every_hostile_text_at_once_and_a_tuned_encoder(shop: Shop) -> None:
    items = [(text, ("A", "B", "C")[n % 3]) for n, text in enumerate(HOSTILE)]
    asks = [(f"buy {text}", label, ("train", "validation", "test")[n % 3]) for n, (text, label) in enumerate(items)]
    run, _ = shop.train(items, asks, "encoder_tuning.ranking_weight=0.5", *FULL)
    check(run)
    assert len(run.instructions()) == len(HOSTILE)


@pytest.mark.parametrize("tuning", [(), FULL], ids=["frozen", "full"])
def test_a_class_with_one_example(shop: Shop, tuning: tuple[str, ...]) -> None:
    items = [("a red hat", "Hats"), ("a blue hat", "Hats"), ("a bag", "Bags")]
    asks = [("show me a hat", "Hats", split) for split in ("train", "validation", "test")]
    run, said = shop.train(items, [*asks, ("i want a bag", "Bags", "train")], "training.class_balance=true", *tuning)
    check(run)
    assert run.labels == ("Bags", "Hats")
    assert any("0 of 2 labels have no training instruction" in line for line in said)


@pytest.mark.parametrize("absent", ["train", "validation", "test"])
def test_a_label_absent_from_a_split(shop: Shop, absent: str) -> None:
    items = [(f"{colour} {label}", label) for colour in ("red", "blue") for label in ("hat", "bag", "shoe")]
    splits = ("train", "validation", "test")
    asks = [
        (f"{verb} a {label}", label, split) for label in ("hat", "bag") for verb in ("buy", "show") for split in splits
    ]
    asks += [("i want a shoe", "shoe", split) for split in splits if split != absent]
    run, _ = shop.train(items, asks, "training.class_balance=true")
    check(run)
    assert run.labels == ("bag", "hat", "shoe")
    assert run.manifest.metrics["test"]["instructions"] == (4 if absent == "test" else 5)
    report = (run.path / "classification_report.txt").read_text(encoding="utf-8")
    assert "nan" not in report


def test_a_label_that_only_test_instructions_have(shop: Shop) -> None:
    asks = [("buy a hat", "hat", split) for split in ("train", "validation", "test")]
    run, _ = shop.train([("hat", "hat"), ("bag", "bag")], [*asks, ("a song", "song", "test")], keep=True)
    check(run)
    assert run.labels == ("bag", "hat", "song")
    assert run.manifest.metrics["test"]["instructions_ranked"] == 1


@pytest.mark.parametrize("overrides", [(), FULL, ("training.shots=0",), ("training.shots=1", *FULL)])
def test_one_label_only(shop: Shop, overrides: tuple[str, ...]) -> None:
    asks = [
        (f"{verb} a hat", "hat", split)
        for verb, split in zip(("buy", "show", "want"), ("train", "validation", "test"), strict=True)
    ]
    run, _ = shop.train([("red hat", "hat"), ("blue hat", "hat")], asks, *overrides)
    check(run)
    assert run.manifest.metrics["test"]["labels"]["top1_accuracy"] == 1
    assert run.manifest.metrics["test"]["ranking"]["ndcg@10"] == 1


@pytest.mark.parametrize("overrides", [(), FULL, ("training.shots=0",), ("training.shots=1",)])
def test_one_instruction_in_all(shop: Shop, overrides: tuple[str, ...]) -> None:
    run, said = shop.train([("red hat", "hat"), ("bag", "bag")], [("buy a hat", "hat", "train")], *overrides)
    check(run)
    assert "test" not in run.manifest.metrics
    assert any("no test split" in line for line in said)


def test_without_a_validation_split_some_of_the_training_split_is_held_out(shop: Shop) -> None:
    asks = [(f"{verb} {number} hats", "hat", "train") for verb in ("buy", "show") for number in range(5)]
    run, said = shop.train([("red hat", "hat"), ("bag", "bag")], asks, *FULL)
    check(run)
    assert len(run.instructions("validation")) == 2
    assert any("2 training instructions are held out" in line for line in said)


def test_items_of_the_same_text_rank_in_catalogue_order(shop: Shop) -> None:
    items = [("hat", "hat"), ("hat", "hat"), ("hat", "bag"), ("shoe", "bag")]
    asks = [
        (f"{verb} a {label}", label, split)
        for label in ("hat", "bag")
        for verb, split in zip(("buy", "show", "want"), ("train", "validation", "test"), strict=True)
    ]
    run, _ = shop.train(items, asks)
    check(run)
    vectors = run.item_vectors()
    assert (vectors[0] == vectors[1]).all()
    scores = vectors @ run.load_model().embed(["buy a hat"])[0]
    ranked = np.argsort(-scores, kind="stable").tolist()
    assert ranked.index(1) == ranked.index(0) + 1


def test_a_catalogue_of_one_text_gives_all_items_one_score(shop: Shop) -> None:
    items = [("the very same", label) for label in ("a", "b", "c")]
    asks = [("the very same", label, split) for label in ("a", "b", "c") for split in ("train", "validation", "test")]
    run, _ = shop.train(items, asks)
    check(run)
    accuracy = run.manifest.metrics["test"]["labels_zero_shot"]
    assert accuracy == {"top1_accuracy": pytest.approx(1 / 3, abs=1e-4), "top3_accuracy": 1.0}
    ranking = run.manifest.metrics["test"]["ranking_zero_shot"]
    assert ranking["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-4)  # catalogue order for every instruction


def test_all_equal_scores_are_finite_and_keep_the_order() -> None:
    catalogue = CatalogueSide(np.tile(np.float32([1, 0]), (5, 1)), [0, 1, 2, 0, 1], [0.0] * 5)
    logs = log_softmax(np.zeros((3, 3), np.float32))
    h = np.tile(np.float32([1, 0]), (3, 1))
    examples = RankingExamples(h, logs, [()] * 3, [{0: 1.0}, {1: 1.0}, {4: 1.0}], np.ones(3, np.float32))
    found = ranking_metrics(examples, catalogue, ZERO_SHOT)
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 5) / 3)
    assert label_accuracy(logs, np.array([0, 1, 2])) == {"top1_accuracy": pytest.approx(1 / 3), "top3_accuracy": 1.0}
    fit = fit_score_weights(examples, catalogue, history=False, prior=False, seed=0)
    assert fit.loss == pytest.approx(math.log(5), abs=1e-3)
    assert (fit.weights.alpha, fit.weights.beta) == pytest.approx(
        (0, 0), abs=0.01
    )  # what changes nothing weighs nothing


def test_a_term_that_is_the_same_for_all_items_weighs_nothing() -> None:
    catalogue = CatalogueSide(np.eye(3, dtype=np.float32), [0, 0, 0], [0.0] * 3)
    logs = log_softmax(np.zeros((3, 2), np.float32))
    grades = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    examples = RankingExamples(np.eye(3, dtype=np.float32), logs, [()] * 3, grades, np.ones(3, np.float32))
    weights = fit_score_weights(examples, catalogue, history=False, prior=False, seed=0).weights
    assert weights.alpha > 1
    assert weights.beta == 0
