"""Which texts graphs are calibrated on and held against torch on."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from export.texts import calibration_texts, held_out_texts, sample, spread, verified_instructions
from serving.steps.invalid_request import InvalidRequestError
from serving.steps.tokenization import MAX_INSTRUCTION_BYTES, decode_instructions
from training.dataset import Instruction, Item

LABELS = [f"label {n}" for n in range(31)]
# Sorted by label, as files often are; the first label has as many as all others, and the long texts come last.
ASKED = [
    Instruction(f"{label} {n}", f"{label} {n} " + "and more " * (n % 40), label, {}, {}, "train" if n % 2 else "test")
    for place, label in enumerate(LABELS)
    for n in range(40 if place else 1200)
]
ITEMS = [Item(f"{label} {n}", label, f"{label} {n}", label) for label in LABELS for n in range(20)]


def shuffled(rows: list[Instruction]) -> list[Instruction]:
    rows = rows.copy()
    random.Random(1).shuffle(rows)  # noqa: S311 - no secret
    return rows


def run_of(instructions: list[Instruction]) -> object:
    def of(split: str | None = None) -> list[Instruction]:
        return [one for one in instructions if split in (None, one.split)]

    return SimpleNamespace(path="run", instructions=of, catalogue=lambda: ITEMS)


def test_the_texts_are_of_all_labels_and_lengths_in_whatever_order_they_come() -> None:
    chosen = spread(ASKED, 64)
    assert {one.label for one in chosen} == set(LABELS)
    assert {len(one.text).bit_length() for one in chosen} == {len(one.text).bit_length() for one in ASKED}
    assert spread(shuffled(ASKED), 64) == chosen
    assert spread(ASKED, 80)[:64] == chosen
    of_first = sum(one.label == LABELS[0] for one in spread(ASKED, 200))
    assert 80 <= of_first <= 110, "half of all are asked for the first label"


def test_fewer_texts_than_labels_are_of_as_many_labels() -> None:
    assert len({one.label for one in spread(ASKED, 16)}) == 16
    assert len({one.text for one in spread(ASKED, 10_000)}) == len(ASKED)
    assert spread([], 16) == []


def test_a_text_that_the_served_steps_refuse_is_asked_nowhere() -> None:
    refused = ["\u200b", "\ue000", "a" * (MAX_INSTRUCTION_BYTES + 1), "ä" * (MAX_INSTRUCTION_BYTES // 2 + 1)]
    for text in refused:
        with pytest.raises(InvalidRequestError):
            decode_instructions(np.array([[text.encode()]], dtype=np.object_))
    longest = Instruction("longest", "a" * MAX_INSTRUCTION_BYTES, "label 1", {}, {}, "test")
    rows = [Instruction(f"{n}", text, "label 1", {}, {}, "test") for n, text in enumerate(refused)]
    run = run_of([*rows, longest, *ASKED[-4:]])
    asked = {one.text for one in (longest, *ASKED[-4:]) if one.split == "test"}
    assert set(held_out_texts(run, 10)) == asked  # type: ignore[arg-type]
    assert {one.text for one in verified_instructions(run, 10)} == asked  # type: ignore[arg-type]


def test_verified_and_calibrated_on_are_those_that_tuning_did_not_and_did_learn_from() -> None:
    run = run_of(ASKED)
    verified = verified_instructions(run, 64)  # type: ignore[arg-type]
    assert {one.split for one in verified} == {"test"}
    assert {one.label for one in verified} == set(LABELS)
    calibrated = calibration_texts(run, 128)  # type: ignore[arg-type]
    assert len(calibrated) == 128
    trained = {one.text: one.label for one in ASKED if one.split == "train"}
    assert {trained[text] for text in calibrated[:64]} == set(LABELS)
    labels = {item.text: item.label for item in ITEMS}
    assert {labels[text] for text in calibrated[64:]} == set(LABELS)
    learned = run_of([one for one in ASKED if one.split == "train"])
    assert len(verified_instructions(learned, 64)) == 64  # type: ignore[arg-type]


def test_a_sample_is_random_and_keeps_what_it_had() -> None:
    assert held_out_texts(run_of(ASKED), 50) == held_out_texts(run_of(shuffled(ASKED)), 50)  # type: ignore[arg-type]
    before, after = sample(ASKED[:-30], 500), sample(ASKED, 500)
    assert len({one.text for one in before} & {one.text for one in after}) > 450
