"""A catalogue on disk: what goes in comes out, and files that do not belong together are refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.steps.catalogue import Catalogue, ScoreWeights, StringTable
from serving.steps.ranking import Ranker

WEIGHTS = ScoreWeights(alpha=1.5, beta=0.25, gamma=0.0, delta=1e-7, history_decay=0.9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def write(folder: Path, items: int = 3, labels: tuple[str, ...] = ("Shirts", "Schuhe"), release: str = "1") -> None:
    catalogue = Catalogue(
        release=release,
        item_ids=StringTable.of([f"item-{row}" for row in range(items)]),
        titles=StringTable.of([f"title {row}" for row in range(items)]),
        item_vectors=np.arange(items * 4, dtype=np.float32).reshape(items, 4),
        label_index=np.arange(items, dtype=np.int32) % len(labels),
        prior=np.linspace(0, 1, items, dtype=np.float32),
        labels=labels,
        score_weights=WEIGHTS,
    )
    catalogue.write(folder)


@settings(max_examples=50)
@given(st.lists(texts, max_size=8))
def test_any_strings_come_back(strings):
    with tempfile.TemporaryDirectory() as folder:
        StringTable.of(strings).write(Path(folder), "names")
        table = StringTable.open(Path(folder), "names")
        assert len(table) == len(strings)
        assert [table[row].decode() for row in range(len(table))] == strings
        rows = np.arange(len(strings), dtype=np.int64)[::-1].reshape(1, -1)
        taken = table.take(rows)
        assert taken.shape == rows.shape
        assert taken.dtype == np.object_
        assert [one.decode() for one in taken[0]] == strings[::-1]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(texts, texts, st.floats(-10, 10, width=32), st.integers(0, 2)), min_size=1, max_size=6),
    st.lists(texts, min_size=3, max_size=3),
    texts,
)
def test_a_catalogue_comes_back(items, labels, release):
    vectors = np.random.default_rng(0).normal(size=(len(items), 5)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        catalogue = Catalogue(
            release=release,
            item_ids=StringTable.of([item[0] for item in items]),
            titles=StringTable.of([item[1] for item in items]),
            item_vectors=vectors,
            label_index=np.array([item[3] for item in items], dtype=np.int32),
            prior=np.array([item[2] for item in items], dtype=np.float32),
            labels=tuple(labels),
            score_weights=WEIGHTS,
        )
        catalogue.write(Path(name))
        opened = Catalogue.open(Path(name))
        assert (opened.release, opened.labels, opened.score_weights) == (release, tuple(labels), WEIGHTS)
        rows = range(len(items))
        assert [(opened.item_ids[row].decode(), opened.titles[row].decode()) for row in rows] == [
            item[:2] for item in items
        ]
        np.testing.assert_array_equal(opened.item_vectors, vectors)
        assert opened.prior.tolist() == [item[2] for item in items]
        assert opened.label_index.tolist() == [item[3] for item in items]
        dtypes = (opened.item_vectors.dtype, opened.label_index.dtype, opened.prior.dtype)
        assert dtypes == (np.float32, np.int32, np.float32)


def test_other_dtypes_and_orders_are_written_as_the_contract_says(tmp_path):
    vectors = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2))
    catalogue = Catalogue(
        release="1",
        item_ids=StringTable.of(["a", "b", "c"]),
        titles=StringTable.of(["", "", ""]),
        item_vectors=vectors,
        label_index=np.array([0, 0, 0], dtype=np.int64),
        prior=np.array([1, 2, 3]),
        labels=("x",),
        score_weights=WEIGHTS,
    )
    catalogue.write(tmp_path)
    opened = Catalogue.open(tmp_path)
    assert opened.item_vectors.dtype == opened.prior.dtype == np.float32
    assert opened.item_vectors.flags.c_contiguous
    assert [opened.titles[row] for row in range(3)] == [b"", b"", b""]


def test_opened_arrays_are_read_only_plain_arrays(tmp_path):
    write(tmp_path)
    opened = Catalogue.open(tmp_path)
    assert type(opened.item_vectors) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        opened.item_vectors[0, 0] = 1


@pytest.mark.parametrize("name", ["item_vectors.npy", "label_index.npy", "prior.npy", "item_ids", "titles"])
def test_files_of_another_catalogue_are_refused(tmp_path, name):
    for folder, items in (("one", 3), ("other", 4)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, items)
    for path in (tmp_path / "other").glob(f"{name}*"):
        path.replace(tmp_path / "one" / path.name)
    with pytest.raises(ValueError, match=rf"differ in their number of items.*{name.removesuffix('.npy')}"):
        Catalogue.open(tmp_path / "one")


def test_a_label_that_the_catalogue_lacks_is_refused(tmp_path):
    """Row numbers of another release's labels: the ranking would fail on every request, or read a wrong label."""
    write(tmp_path)
    header = json.loads((tmp_path / "catalogue.json").read_text())
    header["labels"] = header["labels"][:1]
    (tmp_path / "catalogue.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="label"):
        Catalogue.open(tmp_path)


def test_strings_cut_short_are_refused(tmp_path):
    """As many offsets as items, and fewer bytes than they point to: the last titles would come out empty."""
    write(tmp_path)
    blob = np.load(tmp_path / "titles.bytes.npy")
    np.save(tmp_path / "titles.bytes.npy", blob[:-4])
    with pytest.raises(ValueError, match="titles"):
        Catalogue.open(tmp_path)


def test_pickled_arrays_are_not_loaded(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "prior.npy", np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Python objects|pickle"):
        Catalogue.open(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "titles.offsets.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"titles\.offsets\.npy"):
        Catalogue.open(tmp_path)


def test_an_opened_catalogue_ranks(tmp_path):
    write(tmp_path)
    ranker = Ranker(Catalogue.open(tmp_path))
    history = ranker.history_vectors([[b"item-1"]])
    best = ranker.rank(np.ones((1, 4), np.float32), np.zeros((1, 2), np.float32), history, 2)
    assert best.items.tolist() == [[2, 1]]
