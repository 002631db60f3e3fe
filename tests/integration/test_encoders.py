"""Last-token pooling of a decoder and CLS pooling of a BERT: from weights to live answers, in many scripts."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from instructrec_client import Client, Recommendations
from project import Project, new_project, run_command
from tiny_encoders import MULTILINGUAL, save_encoder

from export.__main__ import main as export
from training.cli import main as train
from training.run import Run

# A label, and what its items are called: Latin with combining marks, Chinese, Arabic, Hindi, emoji.
NOUNS = {
    "衬衫": ("shirt", "衬衫", "قميص", "कमीज़", "👕"),
    "أحذية": ("shoes", "鞋子", "حذاء", "जूते", "👟"),
    "टोपी": ("hat", "帽子", "قبعة", "टोपी", "🎩"),
    "Sac a\u0300 main 👜": ("bag", "手提包", "حقيبة", "थैला", "👜"),
}
COLOURS = ("blue", "红色", "أخضر", "नीला", "dore\u0301 💛")
ASKS = ("I want a {}", "我想要{}", "أريد {}", "मुझे {} चाहिए", "🙏 {} s’il te plai\u0302t")
TEXTS = [
    *MULTILINGUAL,
    *(ask.format(noun) for ask, noun in product(ASKS, ("shirt", "鞋子", "قبعة", "थैला", "👨‍👩‍👧‍👦"))),
    "long " * 90,
]


@dataclass(frozen=True)
class Live:
    """A domain that answers, and the run that its answers must come from."""

    project: Project
    run: Run

    def expected(self, texts: list[str]) -> np.ndarray:
        """The score of every item for every text, by the torch model, [texts, items]."""
        run, weights = self.run, self.run.score_weights
        model = run.load_model()
        h = model.embed(texts)
        logits = h @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        items = run.catalogue()
        labels = [run.labels.index(item.label) for item in items]
        priors = np.array([item.prior for item in items])
        return weights.alpha * h @ run.item_vectors().T + weights.beta * logs[:, labels] + weights.delta * priors

    def answers(self, texts: list[str]) -> list[Recommendations]:
        with Client(self.project.grpc_url, domain=self.project.domain, timeout=30) as client:
            return client.recommend_batch(texts, k=10)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_data(folder: Path) -> None:
    named = [(label, noun, colour) for label, nouns in NOUNS.items() for noun, colour in product(nouns, COLOURS)]
    items = [
        {"id": f"商品-{number}", "title": f"{colour} {noun}", "kind": label}
        for number, (label, noun, colour) in enumerate(named)
    ]
    asked = [(label, ask.format(noun)) for label, nouns in NOUNS.items() for ask, noun in product(ASKS, nouns)]
    asks = [
        {"id": number, "words": words, "kind": label, "split": ("train", "validation", "test")[number % 3]}
        for number, (label, words) in enumerate(asked)
    ]
    write_rows(folder / "items.csv", items)
    write_rows(folder / "asks.csv", asks)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Live]]:
    """Both domains on one server: the decoder tuned with LoRA and in INT8, the BERT frozen and in FP32."""
    folder = tmp_path_factory.mktemp("encoders")
    project = new_project(folder / "var")
    write_data(folder)
    found = {}
    try:
        for domain, kind, pooling, precision, method in (
            ("decoder", "gpt2", "last", "int8", "lora"),
            ("cls", "bert", "cls", "fp32", "frozen"),
        ):
            (folder / kind).mkdir()
            tree = {
                "domain": domain,
                "sources": [
                    {
                        "name": "all",
                        "catalogue": {
                            "file": "items.csv",
                            "item_id": "id",
                            "title": "title",
                            "text": "{title}",
                            "label": "kind",
                        },
                        "instructions": {
                            "file": "asks.csv",
                            "instruction_id": "id",
                            "text": "words",
                            "label": "kind",
                            "split": "split",
                        },
                    }
                ],
                "encoder": {
                    "name": str(save_encoder(kind, folder / kind, end_of_text=True, seed=1)),
                    "pooling": pooling,
                    "max_length": 64,
                },
                "encoder_tuning": {"method": method, "epochs": 2, "batch_size": 16, "rank": 4},
                "training": {"epochs": 40},
                "export": {"verification_texts": 32, "calibration_texts": 64},
                "serving": {"length_buckets": [16, 64]},
            }
            config = folder / f"{domain}.yaml"
            config.write_text(yaml.safe_dump(tree), encoding="utf-8")
            where = ("--config", config, "--data", folder, "--var", project.var)
            run = Run.open(Path(run_command(train, *where, "--print-run").strip()))
            assert f"exported as {precision} and verified" in run_command(export, *where, "--precision", precision)
            project.make("deploy", f"DOMAIN={domain}")
            found[domain] = Live(replace(project, domain=domain), run)
        yield found
    finally:
        project.make("stop", check=False)


@pytest.mark.parametrize("domain", ["decoder", "cls"])
def test_texts_in_any_script_are_answered_as_torch_answers_them(live: dict[str, Live], domain: str) -> None:
    one = live[domain]
    expected, answers = one.expected(TEXTS), one.answers(TEXTS)
    items = one.run.catalogue()
    row_of = {item.item_id: row for row, item in enumerate(items)}
    shared = []
    for scores, answer in zip(expected, answers, strict=True):
        rows = [row_of[item.item_id] for item in answer]
        shared.append(len(set(rows) & set(np.argsort(-scores)[:10].tolist())) / 10)
        for row, item in zip(rows, answer, strict=True):
            assert (item.title, item.label) == (items[row].title, items[row].label)
        if domain == "cls":  # FP32: the very scores; near twins may change places
            np.testing.assert_allclose([item.score for item in answer], scores[rows], atol=1e-4)
            np.testing.assert_allclose([item.score for item in answer], np.sort(scores)[::-1][:10], atol=1e-4)
    assert np.mean(shared) > 0.9, shared
    assert len({tuple(item.item_id for item in answer) for answer in answers}) > len(TEXTS) / 2, "texts became alike"


def test_what_the_catalogue_says_comes_back_character_for_character(live: dict[str, Live]) -> None:
    titles = {f"{colour} {noun}" for nouns in NOUNS.values() for noun, colour in product(nouns, COLOURS)}
    for one in live.values():
        found = {(item.title, item.label) for answer in one.answers(TEXTS) for item in answer}
        assert {title for title, _ in found} <= titles
        assert {label for _, label in found} <= set(NOUNS)
        assert any("\u0301" in title for title, _ in found), "no combining mark was put to the test"
