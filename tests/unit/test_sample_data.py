"""The sample dataset in `data/`: it is what its generator writes, its rows agree, and its splits are apart."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
ATTRIBUTES = ("colour", "material", "occasion", "audience")
GENERATED = ("catalogue.csv", "instructions.csv", "interactions.csv")

Row = dict[str, str]


def read(name: str) -> list[Row]:
    """Return the rows of one file of the sample dataset."""
    with (DATA / "ecommerce" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def normalised(text: str) -> str:
    """Return `text` in lower case with single spaces and without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower().replace("'", "")))


def run_generator(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the generator that lies in `data`."""
    command = [sys.executable, "-B", str(data / "generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def catalogue() -> list[Row]:
    return read("catalogue.csv")


@pytest.fixture(scope="module")
def instructions() -> list[Row]:
    return read("instructions.csv")


@pytest.fixture(scope="module")
def interactions() -> list[Row]:
    return read("interactions.csv")


@pytest.fixture
def data_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The generator's two tables, `phrases` and `vocabulary`."""
    monkeypatch.syspath_prepend(str(DATA))
    loaded = importlib.import_module("phrases"), importlib.import_module("vocabulary")
    for module in loaded:
        monkeypatch.delitem(sys.modules, module.__name__)
    return loaded


def split_texts(instructions: list[Row], *splits: str) -> list[str]:
    """Return the normalised texts of some splits."""
    return [normalised(row["instruction"]) for row in instructions if row["split"] in splits]


def matching(catalogue: list[Row], row: Row) -> list[Row]:
    """Return the items with the label and every attribute that an instruction names."""
    named = [column for column in ("label", *ATTRIBUTES) if row[column]]
    return [item for item in catalogue if all(item[column] == row[column] for column in named)]


# -- the generator -----------------------------------------------------------------------------------------------------


def test_committed_files_are_what_the_generator_writes() -> None:
    result = run_generator(DATA, "--check")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", GENERATED)
def test_check_names_a_changed_or_missing_file_and_a_run_restores_it(data_copy: Path, name: str) -> None:
    path = data_copy / "ecommerce" / name
    committed = path.read_bytes()
    path.write_bytes(committed + b"\n")
    changed = run_generator(data_copy, "--check")
    path.unlink()
    missing = run_generator(data_copy, "--check")
    for result in (changed, missing):
        assert result.returncode == 1
        assert name in result.stderr
        assert result.stderr.count("\n") == 1
    assert not path.exists()
    assert run_generator(data_copy).returncode == 0
    assert path.read_bytes() == committed
    assert sorted(p.name for p in path.parent.iterdir()) == sorted((*GENERATED, "handwritten.csv"))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("test-900,hello,Spaceships,,,,,,test", "label"),
        ("test-900,hello,,,,,,,test", "label"),
        ("test-900,hello,Shirts,bleu,,,,,test", "colour"),
        ("test-900,hello,Shirts,,,,,sku-9999:2,test", "relevant"),
        ("test-900,hello,Shirts,,,,,sku-0001:7,test", "relevant"),
        ("test-900,hello,Shirts,,,,,,train", "split"),
        ("test-900,hello, you,Shirts,,,,,,test", "columns"),
        ("test-900,hello,Shirts", "columns"),
    ],
)
def test_a_bad_handwritten_row_is_one_error_and_nothing_is_written(data_copy: Path, row: str, column: str) -> None:
    path = data_copy / "ecommerce" / "handwritten.csv"
    number = len(read("handwritten.csv")) + 2
    with path.open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    result = run_generator(data_copy)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: handwritten.csv row {number}")
    assert column in result.stderr
    assert result.stderr.count("\n") == 1
    for name in GENERATED:
        assert (data_copy / "ecommerce" / name).read_bytes() == (DATA / "ecommerce" / name).read_bytes()


def test_a_handwritten_file_that_is_not_utf8_or_not_there_is_one_error(data_copy: Path) -> None:
    path = data_copy / "ecommerce" / "handwritten.csv"
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    assert "UTF-8" in run_generator(data_copy).stderr
    path.unlink()
    result = run_generator(data_copy)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "handwritten.csv" in result.stderr


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_catalogue_is_large_and_varied_enough(catalogue: list[Row]) -> None:
    labels = Counter(item["label"] for item in catalogue)
    assert len(catalogue) >= 480
    assert 28 <= len(labels) <= 32
    assert min(labels.values()) >= 12
    assert max(labels.values()) <= 24
    assert {item["audience"] for item in catalogue} == {"men", "women", "kids", "unisex"}
    assert sum(item["label"] == "Shirts" and item["colour"] == "blue" for item in catalogue) >= 8


def test_every_item_is_complete_and_unlike_the_others(catalogue: list[Row]) -> None:
    assert all(all(item.values()) for item in catalogue)
    for column in ("item_id", "title"):
        assert len({item[column] for item in catalogue}) == len(catalogue), column
    assert all(re.fullmatch(r"sku-\d{4}", item["item_id"]) for item in catalogue)
    assert all(0 < float(item["prior"]) <= 1 and float(item["price"]) > 0 for item in catalogue)


def test_every_text_names_its_colour_and_material(catalogue: list[Row]) -> None:
    for item in catalogue:
        for words in (item["title"].lower(), item["text"].lower()):
            assert item["colour"] in words
            assert item["material"] in words


# -- the instructions --------------------------------------------------------------------------------------------------


def test_there_are_enough_instructions_in_each_split(instructions: list[Row], catalogue: list[Row]) -> None:
    splits = Counter(row["split"] for row in instructions)
    assert set(splits) == {"train", "validation", "test"}
    assert splits["train"] >= 300
    assert splits["validation"] >= 60
    assert splits["test"] >= 120
    tested = Counter(row["label"] for row in instructions if row["split"] == "test")
    assert all(tested[label] >= 3 for label in {item["label"] for item in catalogue})


def test_instruction_ids_and_texts_are_unique(instructions: list[Row]) -> None:
    assert all(row["instruction"].strip() for row in instructions)
    assert len({row["instruction_id"] for row in instructions}) == len(instructions)
    assert len({normalised(row["instruction"]) for row in instructions}) == len(instructions)


def test_the_catalogue_can_answer_every_instruction(instructions: list[Row], catalogue: list[Row]) -> None:
    unanswered = [row["instruction_id"] for row in instructions if not row["label"] or not matching(catalogue, row)]
    assert unanswered == []


def test_graded_items_have_the_label_that_is_asked_for(instructions: list[Row], catalogue: list[Row]) -> None:
    labels = {item["item_id"]: item["label"] for item in catalogue}
    graded = [row for row in instructions if row["relevant"]]
    assert graded
    for row in graded:
        judged = [pair.split(":") for pair in row["relevant"].split("|")]
        assert all(labels[item_id] == row["label"] and grade in {"1", "2"} for item_id, grade in judged)
        assert len({item_id for item_id, _ in judged}) == len(judged)
        assert any(grade == "2" for _, grade in judged)


# -- the splits are apart ----------------------------------------------------------------------------------------------


def is_template(text: str, phrases: ModuleType, vocabulary: ModuleType) -> bool:
    """Return whether `text` wears a training frame, or holds a need as the training vocabulary words it."""
    frames = [[normalised(part) for part in frame.split("{wish}")] for frame in phrases.FRAMES]
    uses = [normalised(use) for kind in vocabulary.KINDS.values() for use in kind.uses.split("|")]
    framed = any(f"{text} ".startswith(f"{start} ") and text.endswith(end) for start, end in frames)
    return framed or any(use in text for use in uses)


def test_no_handwritten_text_is_a_template(instructions: list[Row], tables: tuple[ModuleType, ModuleType]) -> None:
    assert all(is_template(text, *tables) for text in split_texts(instructions, "train"))
    assert [text for text in split_texts(instructions, "validation", "test") if is_template(text, *tables)] == []


def test_no_handwritten_text_begins_like_the_training_split(instructions: list[Row]) -> None:
    def beginning(text: str) -> tuple[str, ...]:
        return tuple(text.split()[:4])

    trained = Counter(beginning(text) for text in split_texts(instructions, "train"))
    assert max(trained.values()) > 2
    assert [text for text in split_texts(instructions, "validation", "test") if trained[beginning(text)] > 2] == []


def test_handwritten_texts_vary_in_length_and_beginning(instructions: list[Row]) -> None:
    texts = split_texts(instructions, "test")
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 4
    assert max(lengths) >= 20
    assert max(Counter(tuple(text.split()[:3]) for text in texts).values()) <= 3


# -- the interactions --------------------------------------------------------------------------------------------------


def test_interactions_are_histories_of_known_items(interactions: list[Row], catalogue: list[Row]) -> None:
    assert {event["item_id"] for event in interactions} <= {item["item_id"] for item in catalogue}
    assert all(float(event["value"]) > 0 and event["timestamp"].isdigit() for event in interactions)
    counts = Counter(event["user_id"] for event in interactions)
    assert len(counts) == 60
    assert all(8 <= count <= 20 for count in counts.values())
    for user in counts:
        times = [int(event["timestamp"]) for event in interactions if event["user_id"] == user]
        assert all(earlier < later for earlier, later in pairwise(times))


def test_histories_carry_taste(interactions: list[Row], catalogue: list[Row]) -> None:
    """A user's three commonest labels and commonest colour cover far more than the same counts would over all items."""
    items = {item["item_id"]: item for item in catalogue}
    users = {event["user_id"] for event in interactions}

    def coverage(column: str, most: int) -> float:
        kept = 0
        for user in users:
            values = Counter(items[event["item_id"]][column] for event in interactions if event["user_id"] == user)
            kept += sum(count for _, count in values.most_common(most))
        return kept / len(interactions)

    assert coverage("label", 3) > 0.8
    assert coverage("colour", 1) > 0.35


def test_interactions_leak_no_instruction(interactions: list[Row], data_copy: Path) -> None:
    """Histories are the same whatever the instructions are, and no column ties one to the other."""
    assert list(interactions[0]) == ["user_id", "item_id", "value", "timestamp"]
    path = data_copy / "ecommerce" / "handwritten.csv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert run_generator(data_copy).returncode == 0
    for name in ("catalogue.csv", "interactions.csv"):
        assert (data_copy / "ecommerce" / name).read_bytes() == (DATA / "ecommerce" / name).read_bytes()
