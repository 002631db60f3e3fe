"""Labels that a text names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.dataset import Item
from training.label_names import LabelNames

TITLES = {
    "Casual Shoes": ["Blue canvas shoes", "Red sandal shoes"],
    "Dresses": ["Long black dress", "Red dress"],
    "Flats": ["Brown sandals", "Flat brown sandals", "Black sandals"],
    "Jewellery": ["Silver chain"],
    "Necklace and Chains": ["Gold chain", "Necklace of pearls"],
    "Perfume and Body Mist": ["Rose perfume"],
    "Sandals": ["White sandals", "Leather sandal", "Grey sandal"],
    "Shirts": ["Blue shirt", "Short shirt"],
    "Shorts": ["Short shorts"],
    "Tops": ["Short top"],
    "Track Pants": ["Grey track pants"],
    "Tshirts": ["White t-shirt", "Black T shirt"],
}


def names_of(titles: dict[str, list[str]]) -> LabelNames:
    return LabelNames.learn([Item(text, text, text, label) for label, own in titles.items() for text in own])


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("I want women's sandals, size 8", ("Sandals",)),
        ("a SANDAL", ("Sandals",)),
        ("casual shoes for a walk", ("Casual Shoes",)),
        ("casual red shoes", ()),
        ("some perfume", ("Perfume and Body Mist",)),
        ("a body mist", ("Perfume and Body Mist",)),
        ("perfume and body mist", ("Perfume and Body Mist",)),
        ("trackpants", ("Track Pants",)),
        ("a white t-shirt", ("Tshirts",)),
        ("a white t shirt", ("Tshirts",)),
        ("a dress shirt", ("Shirts",)),
        ("a shirt or a dress", ("Shirts", "Dresses")),
        ("a shirt with a collar, a shirt that lasts", ("Shirts",)),
        ("short sleeves", ()),
        ("shorts", ("Shorts",)),
        ("a necklace with a chain", ("Necklace and Chains",)),
        ("watches", ()),
        ("", ()),
        ("🙂 ,,, ''", ()),
    ],
)
def test_labels_are_found_by_name(text: str, labels: tuple[str, ...]) -> None:
    assert names_of(TITLES).named(text) == labels


def test_a_name_of_two_labels_names_none() -> None:
    names = names_of({"Wash and Scrub": ["a"], "Peel and Scrub": ["b"]})
    assert names.named("a scrub") == ()
    assert names.named("wash and scrub") == ("Wash and Scrub",)


def test_labels_without_letters_and_in_other_scripts() -> None:
    names = names_of({"&": ["a"], "靴": ["b"], "Мода": ["c"]})
    assert names.named("a & b") == ()
    assert names.named("赤い 靴") == ("靴",)
    assert names.named("МОДА") == ("Мода",)


def test_an_empty_catalogue_names_nothing() -> None:
    assert names_of({}).named("anything") == ()


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    assert set(names_of(TITLES).named(text)) <= set(TITLES)


@pytest.mark.parametrize(
    ("text", "name", "exchanged"),
    [
        ("White SANDALS, size 8", "Track Pants", "white track pants size 8"),
        ("a sandal with a sole", "Track Pants", "a track pant with a sole"),
        ("some sandals", "Dress", "some dresses"),
        ("no name at all", "Track Pants", None),
        ("sandals for a dress", "Track Pants", None),
    ],
)
def test_a_name_is_exchanged_in_its_number(text: str, name: str, exchanged: str | None) -> None:
    assert names_of(TITLES).exchanged(text, name) == exchanged


def test_the_names_of_a_label_name_it_alone() -> None:
    names = names_of({"Wash and Scrub": ["a"], "Peel and Scrub": ["b"]})
    assert names.names_of("Wash and Scrub") == ["Wash and Scrub", "Wash"]
