"""A tiny encoder and a tiny dataset, so that training is tested for real in seconds."""

import csv
import itertools
import os
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import yaml

if TYPE_CHECKING:
    from continual_helpers import Shop

# How long an example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

COLOURS = ("blue", "red", "green", "black")
LABELS = ("Shirts", "Shoes", "Hats", "Bags")
WORDS = ("i", "want", "to", "buy", "a", "the", "for", "with", "show", "me", "shirt", "shoe", "hat", "bag", *COLOURS)


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cuts the power here, so nothing has to reach the disk, which takes longer than all else in some tests."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 dimensions with random weights and a WordPiece tokenizer that pads to 48, as all-MiniLM's does."""
    # Imported here, so that tests of rooms without torch do not load it.
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    torch.set_num_threads(1)  # the model is so small that threads only wait for each other
    torch.manual_seed(0)
    pieces = [*string.ascii_lowercase, *string.digits, *".,-!?'"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=48)
    tokenizer.enable_truncation(48)
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,  # texts would be nearly alike at the usual 0.02
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A data directory: 32 items over four labels, 48 instructions with all splits, 12 people with histories."""
    shop = tmp_path / "data" / "shop"
    products = list(itertools.product(LABELS, COLOURS, ("plain", "striped")))
    items = [
        (f"item-{n}", f"{style} {colour} {label[:-1]}", f"A {style} {label[:-1]} in {colour}", label, colour, n % 5)
        for n, (label, colour, style) in enumerate(products)
    ]
    write_csv(shop / "items.csv", ("id", "name", "text", "kind", "colour", "prior"), items)
    asks = list(itertools.product(LABELS, COLOURS, ("I want a", "show me the", "buy a")))
    instructions = [
        (f"ask-{n}", f"{ask} {colour} {label[:-1].lower()}", label, colour, "", ("train", "validation", "test")[n % 3])
        for n, (label, colour, ask) in enumerate(asks)
    ]
    header = ("id", "words", "kind", "colour", "relevant", "split")
    write_csv(shop / "asks.csv", header, instructions)
    events = [
        (f"user-{user}", f"item-{(user * 8 + step) % 32}", 1, 1_700_000_000 + user * 100 + step)
        for user in range(12)
        for step in range(5)
    ]
    write_csv(shop / "events.csv", ("user", "item", "value", "time"), events)
    return shop.parent


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_encoder: Path) -> Path:
    """The YAML of `tiny_data` with `tiny_encoder`."""
    tree = {
        "domain": "shop",
        "sources": [
            {
                "name": "main",
                "catalogue": {
                    "file": "shop/items.csv",
                    "item_id": "id",
                    "title": "name",
                    "text": "{name}. {text}",
                    "label": "kind",
                    "prior": "prior",
                    "attributes": {"colour": "colour"},
                },
                "instructions": {
                    "file": "shop/asks.csv",
                    "instruction_id": "id",
                    "text": "words",
                    "label": "kind",
                    "relevant": "relevant",
                    "attributes": {"colour": "colour"},
                    "split": "split",
                },
                "interactions": {
                    "file": "shop/events.csv",
                    "user_id": "user",
                    "item_id": "item",
                    "value": "value",
                    "timestamp": "time",
                },
            }
        ],
        "encoder": {"name": str(tiny_encoder), "max_length": 32},
        "training": {"epochs": 60, "weight_decays": [0.0], "items_per_label": 4},
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def taught_shop(tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> "Shop":
    """A domain with a live release whose head can be tuned, without an encoder."""
    from continual_helpers import Shop, WordEncoder  # noqa: PLC0415 - as above

    monkeypatch.setattr("continual.old_skill.release_encoder", WordEncoder)
    return Shop(tiny_config, tmp_path / "var")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts an `nvidia-smi` on the path that answers as told; told nothing, there is none."""
    from engine_fakes import put_nvidia_smi  # noqa: PLC0415 - for few tests only

    def install(answer: str | None, status: int = 0) -> None:
        put_nvidia_smi(monkeypatch, tmp_path, answer, status)

    install(None)
    return install


@pytest.fixture(scope="session")
def exported(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an `export_helpers.Shop` with one release; to be copied, not changed."""
    from export_helpers import made_shop  # noqa: PLC0415 - see `tiny_encoder`

    shop = made_shop(tmp_path_factory.mktemp("exported"), tiny_encoder)
    assert shop.export(shop.run).is_new
    return shop.var.parent
