"""Labels that a text means without naming them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.dataset import Item
from training.label_names import LabelNames
from training.word_meanings import WordMeanings

TITLES = {
    "Flip Flops": [f"Brand {n} slippers" for n in range(6)],
    "Sandals": ["Leather slippers", "White sandals"],
    "Sweatshirts": ["Grey sweatshirt"],
    "Track Pants": [f"Brand {n} track pants" for n in range(6)],
    "Trousers": ["Linen trousers"],
    "Tshirts": [f"Brand {n} t-shirt" for n in range(20)],
}
TEXTS = [
    "I want slippers with a soft sole",
    "brown pants in a large size",
    "a hoodie that is warm, with a zip",
    "I need a tee",
    "a lamp with a clear glass",
    *(f"{label} {after} a price" for label in TITLES for after in ("with", "in", "that")),
]
LIKE = {"slippers": "sandals", "pants": "trousers", "hoodie": "sweatshirts", "tee": "tshirts"}
"""What an encoder would say: the first are as like the second as two different phrases can be here."""


def embed(phrases: Sequence[str]) -> np.ndarray:
    """Each name has a direction of its own, and so has each word that is like none; others lean towards a name."""
    axes = [label.casefold() for label in TITLES] + ["anything else"]
    rows = np.zeros((len(phrases), len(axes)), np.float32)
    for row, phrase in zip(rows, phrases, strict=True):
        name = LIKE.get(phrase, phrase)
        row[axes.index(name) if name in axes else -1] = 0.8 if phrase in LIKE else 1
        row[-1] += 0.6 if phrase in LIKE else 0
    return rows


def learn(texts: Sequence[str], titles: dict[str, list[str]] = TITLES) -> WordMeanings:
    items = [Item(text, text, text, label) for label, own in titles.items() for text in own]
    return WordMeanings.learn(texts, items, LabelNames.learn(items), embed)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("slippers", "Flip Flops"),  # as titles say, though the word is more like sandals
        ("soft slippers in pink", "Flip Flops"),
        ("pants", "Trousers"),  # that Track Pants are called so says nothing of pants
        ("warm pants that fit", "Trousers"),
        ("a hoodie with a zip", "Sweatshirts"),
        ("I need a tee", "Tshirts"),
        ("pants like a hoodie", "Sweatshirts"),  # only what stands where names stand
        ("a hoodie like mine", None),
        ("a lamp with a clear glass", None),
        ("gloves", None),  # that no text spoke of
        ("", None),
        ("🙂 ,,, ''", None),
    ],
)
def test_words_mean_labels(text: str, label: str | None) -> None:
    assert learn(TEXTS).meant(text) == label


def test_between_two_labels_the_one_with_more_items_is_meant() -> None:
    titles = {"Capes": ["a"], "Coats": ["b"] * 2}

    def even(phrases: Sequence[str]) -> np.ndarray:
        return np.ones((len(phrases), 1), np.float32)  # all are as like as can be

    def meant(titles: dict[str, list[str]]) -> str | None:
        items = [Item(f"{text} {n}", text, text, label) for label, own in titles.items() for n, text in enumerate(own)]
        return WordMeanings.learn(["a poncho"], items, LabelNames.learn(items), even).meant("a poncho")

    assert meant(titles) == "Coats"
    assert meant(titles | {"Capes": ["a"] * 3}) == "Capes"


def test_the_second_of_two_names_is_asked_for_and_a_rare_word_after_a_name_says_nothing() -> None:
    texts = [
        *TEXTS,
        *["sandals hoodie with a zip"] * 2,
        *["a sweatshirt tee in red"] * 2,
        *["track pants trousers"] * 9,
    ]
    meanings = learn(texts)
    assert meanings.meant("a hoodie") == "Sweatshirts", "twice after a name is no rule"
    assert meanings.meant("my pants with pockets") == "Trousers"


def test_without_texts_nothing_is_meant() -> None:
    assert learn([]).meant("a hoodie") is None
    assert learn(["a sandal"]).meant("a hoodie") is None


@given(st.lists(st.text(max_size=40), max_size=8), st.text(max_size=60))
def test_any_text_means_a_label_or_nothing(texts: list[str], text: str) -> None:
    assert learn([*texts, text]).meant(text) in {None, *TITLES}
