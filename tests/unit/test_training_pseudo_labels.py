"""Which unlabelled texts are learned from, and as what: thresholds of nearness and of the teacher's bearing with it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from training.config import SelfTrainingConfig
from training.dataset import Dataset, Item
from training.embedding_cache import EmbeddingCache
from training.pseudo_labels import SELDOM, pseudo_label
from training.run import Run

LABELS = ("Bags", "Hats", "Shoes")
AXES = {"bag": 0, "satchel": 0, "hat": 1, "beret": 1, "shoe": 2, "pump": 2}
FAR = 3
"""A direction that nothing of the catalogue has."""


def vectors(texts: Sequence[str]) -> np.ndarray:
    """A direction for each label, which its words have; each "far" in a text draws it away from all items."""
    rows = np.zeros((len(texts), 4), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.casefold().split():
            if (axis := AXES.get(word, AXES.get(word.removesuffix("s")))) is not None:
                row[axis] += 1
            row[FAR] += word == "far"
        row[FAR] += 0 if row.any() else 1
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def pseudo(texts: Sequence[str], *, sure: float = 4.0, **settings: Any) -> dict[str, str]:
    """What is learned of `texts`, and as what, by a teacher whose head and items know the words."""
    items = [Item(f"{label}{n}", f"a {label[:-1].lower()}", "", label) for label in LABELS for n in range(3)]
    weight = np.eye(3, 4, dtype=np.float32) * sure
    head = SimpleNamespace(weight=torch.from_numpy(weight), bias=torch.zeros(3))
    teacher = SimpleNamespace(
        labels=LABELS,
        run_id="teacher",
        load_model=lambda: SimpleNamespace(head=head),
        item_vectors=lambda: vectors([item.title for item in items]),
        catalogue=lambda: items,
    )
    dataset = Dataset("main", tuple(items), (), (), weak_labels=False, has_prior=False, fingerprint="", files={})
    dataset = cast("Dataset", SimpleNamespace(items=items, labels=dataset.labels, unlabelled=tuple(texts)))

    def embed(_: object, texts: Sequence[str], batch_size: int) -> np.ndarray:
        return vectors(texts)

    cache = cast("EmbeddingCache", SimpleNamespace(embed=embed))
    config = SelfTrainingConfig(teacher="teacher", **settings)
    found = pseudo_label(dataset, cast("Run", teacher), config, cache, batch_size=8)
    own = [one.instruction for one in found if one.instruction.instruction_id.startswith("pseudo-")]
    return {one.text: cast("str", one.label) for one in own}


NAMED = [f"{'far ' * n}{word} number {n}" for word in ("bag", "hat", "shoe") for n in range(4)]
AFTER = [f"a {word} with a price" for word in ("bag", "hat", "shoe")]


def test_what_is_meant_must_be_nearer_than_a_share_of_what_is_named() -> None:
    texts = [*AFTER, *NAMED, "a beret", "far a beret", "far far far a beret", "a pump with a far price", "a lamp"]
    found = pseudo(texts, names=True, nearest=1)
    assert {text: found.get(text) for text in texts} == {
        **{text: f"{text.split()[1].title()}s" for text in AFTER},
        **{text: f"{next(word for word in text.split() if word in AXES).title()}s" for text in NAMED},
        "a beret": "Hats",
        "far a beret": "Hats",
        "far far far a beret": None,
        "a pump with a far price": "Shoes",
        "a lamp": None,
    }
    cosines = sorted(float(vectors([text])[0][:3].max()) for text in [*AFTER, *NAMED])
    assert float(vectors(["far far far a beret"])[0].max()) > 0.5, "by its words it is a hat"
    assert float(vectors(["far far far a beret"])[0][:3].max()) < np.quantile(cosines, SELDOM)


@pytest.mark.parametrize(("text", "kept"), [("a hat of satchel", True), ("a hat of satchel satchel satchel", False)])
def test_a_name_that_the_teacher_finds_absurd_is_not_believed(text: str, kept: bool) -> None:
    found = pseudo([text, *AFTER, *NAMED], names=True, nearest=1, sure=8.0)
    assert found.get(text) == ("Hats" if kept else None)
