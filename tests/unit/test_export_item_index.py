"""The approximate index: built, verified, written, opened, and held against exact ranking."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_helpers import catalogue_of

from export import item_index
from export.errors import ExportError, VerificationError
from export.item_index import APPROXIMATE_FROM, Requests, recall, wants_index, write_items
from export.settings import ServingSettings, TopkSettings, read_section
from serving.steps.catalogue import Catalogue, ScoreWeights
from serving.steps.item_index import CODES, HEADER, STEPS, ItemIndex
from serving.steps.ranking import MAX_TOP_K, Ranker

pytest.importorskip("faiss")

ITEMS, WIDTH, LABELS = 3_000, 24, 6
APPROXIMATE = TopkSettings(index="approximate")


def made(behaviour: bool = False, delta: float = 0.2, **changes: Any) -> Catalogue:
    """Items in clusters, one label without any, in no order of labels; some of them twice."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, WIDTH))
    cluster = generator.integers(0, 40, ITEMS)
    vectors = centres[cluster] + 0.6 * generator.normal(size=(ITEMS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, prior = np.array([0, 1, 2, 4, 5])[cluster % 5], generator.random(ITEMS)
    for array in (vectors, labels, prior):
        array[-200:] = array[:200]
    weights = ScoreWeights(alpha=10, beta=0.7, gamma=3, delta=delta, history_decay=0.8)
    plain = catalogue_of(vectors, labels, prior, weights, labels=LABELS)
    side = generator.normal(size=(ITEMS, 5)).astype(np.float32) if behaviour else None
    return dataclasses.replace(plain, history_vectors=side, **changes)


def requests_for(catalogue: Catalogue, rows: int = 80) -> Requests:
    generator = np.random.default_rng(1)
    near = generator.integers(0, ITEMS, rows)
    h = catalogue.item_vectors[near] + 0.1 * generator.normal(size=(rows, WIDTH))
    u = generator.normal(size=(rows, LABELS)) * 2
    u[np.arange(rows), catalogue.label_index[near]] += 4
    return Requests.of(h.astype(np.float32), u.astype(np.float32), catalogue)


def ranked(ranker: Ranker, asked: Requests, k: int) -> Any:
    history, excluded = ranker.history_vectors(asked.histories), ranker.excluded_rows(asked.histories)
    return ranker.rank(asked.instruction, asked.logits, history, k, excluded)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    report = write_items(made(), folder, APPROXIMATE, requests_for(made()))
    assert report is not None
    assert report.passed
    return folder


@pytest.mark.parametrize("behaviour", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_a_written_index_answers_as_the_exact_scan_does(tmp_path, behaviour, exclude):
    catalogue = made(behaviour, exclude_history=exclude)
    asked = requests_for(catalogue)
    report = write_items(catalogue, tmp_path, APPROXIMATE, asked)
    assert report is not None
    assert report.checks[0].measured >= 0.99
    indexed, exact = Ranker.open(tmp_path), Ranker(catalogue)
    for k in (1, 10, MAX_TOP_K):
        found, best = ranked(indexed, asked, k), ranked(exact, asked, k)
        assert recall(found, best) >= 0.97
        np.testing.assert_allclose(found.reason.sum(axis=-1), found.score, rtol=1e-5)
        assert (np.diff(found.score, axis=1) <= 0).all()
        for row in range(len(asked.histories)):
            ids = indexed.catalogue.item_ids.take(found.items[row]).tolist()
            assert len(set(ids)) == k
            if exclude:
                assert not set(ids) & set(asked.histories[row])
            scores = dict(zip(catalogue.item_ids.take(best.items[row]).tolist(), best.score[row].tolist(), strict=True))
            for item_id, score in zip(ids, found.score[row].tolist(), strict=True):
                assert scores.get(item_id, score) == pytest.approx(score, rel=1e-5)


def test_equal_items_keep_the_order_of_the_dataset(written):
    ranker = Ranker.open(written)
    asked = requests_for(made())
    ids = ranker.catalogue.item_ids.take(ranked(ranker, asked, 20).items)
    twins = 0
    for row in ids:
        numbers = [int(one.decode().removeprefix("item-")) for one in row]
        for first in (one for one in numbers if one < 200 and one + ITEMS - 200 in numbers):
            assert numbers.index(first) < numbers.index(first + ITEMS - 200)
            twins += 1
    assert twins


def many_equal() -> tuple[list[bytes], Ranker, Any]:
    """82 equal items in the dataset's order, an index over them and others, and 16 requests that they are good for."""
    plain = made(exclude_history=True)
    vectors, labels, prior = (np.array(one) for one in (plain.item_vectors, plain.label_index, plain.prior))
    equal = np.sort(np.random.default_rng(2).choice(ITEMS, 82, replace=False))
    for array in (vectors, labels, prior):
        array[equal] = array[0]
    catalogue = dataclasses.replace(plain, item_vectors=vectors, label_index=labels, prior=prior)
    codes, steps, order = item_index.build_index(catalogue)
    ordered = catalogue.reordered(order)
    near = vectors[:1] + 0.2 * np.random.default_rng(3).normal(size=(16, WIDTH)).astype(np.float32)
    logits = np.zeros((16, LABELS), np.float32)
    logits[:, labels[0]] = 3
    ranker = Ranker(ordered, ItemIndex(codes, steps, ordered, probes=codes.nlist, slack=100.0))
    return catalogue.item_ids.take(equal).tolist(), ranker, (near, logits, np.zeros_like(near))


def test_of_more_equal_items_than_candidates_the_first_of_the_dataset_are_answered():
    equal, ranker, asked = many_equal()
    for k in (10, 60):
        answered = 0
        for row in ranker.catalogue.item_ids.take(ranker.rank(*asked, k).items).tolist():
            own = [item_id for item_id in row if item_id in equal]
            assert own == equal[: len(own)]
            answered += len(own)
        assert answered


def test_a_neighbour_that_asks_for_more_changes_no_answer():
    _, indexed, asked = many_equal()
    seen = [list(range(60)) if row % 2 else [] for row in range(16)]
    for wishes, excluded in (([10, MAX_TOP_K] * 8, None), ([10] * 16, seen)):
        together = indexed.rank(*asked, wishes, excluded)
        for row in range(0, 16, 2):
            alone = indexed.rank(*(one[row : row + 1] for one in asked), 10)
            np.testing.assert_array_equal(together.items[row, :10], alone.items[0])
            np.testing.assert_array_equal(together.score[row, :10], alone.score[0])


def test_a_request_that_wants_more_than_its_cells_hold_looks_further(written):
    ranker = Ranker.open(written)
    ranker._finder.probes, ranker._finder.slack = 1, 0.0  # type: ignore[union-attr]
    asked = requests_for(made())
    assert ranked(ranker, asked, MAX_TOP_K).items.shape == (80, MAX_TOP_K)
    everything = ranker.rank(asked.instruction[:2], asked.logits[:2], np.zeros((2, WIDTH), np.float32), ITEMS + 5)
    assert sorted(everything.items[0].tolist()) == list(range(ITEMS))


def test_an_answer_does_not_depend_on_its_neighbours(written):
    ranker, asked = Ranker.open(written), requests_for(made())
    together = ranked(ranker, asked, 10)
    for row in range(0, 80, 7):
        one = slice(row, row + 1)
        alone = ranked(ranker, Requests(asked.instruction[one], asked.logits[one], asked.histories[one]), 10)
        np.testing.assert_array_equal(alone.items[0], together.items[row])
        np.testing.assert_array_equal(alone.score[0], together.score[row])


def test_a_text_without_tokens_and_flat_logits_are_answered(written):
    ranker = Ranker.open(written)
    zero = np.zeros((1, WIDTH), np.float32)
    best = ranker.rank(zero, np.zeros((1, LABELS), np.float32), zero, 10)
    assert np.isfinite(best.score).all()
    with pytest.raises(FloatingPointError):
        ranker.rank(np.full((1, WIDTH), np.nan, np.float32), np.zeros((1, LABELS), np.float32), zero, 10)


def test_an_index_that_finds_too_little_makes_no_release(tmp_path, monkeypatch):
    monkeypatch.setattr(item_index, "PROBES", (1,))
    with pytest.raises(VerificationError, match="recall of the best 10") as caught:
        write_items(made(), tmp_path, TopkSettings(index="approximate", recall=1.0), requests_for(made()))
    assert caught.value.report.checks[0].measured < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [HEADER, CODES, STEPS])
@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_damaged_index_is_a_load_error_that_says_what_to_do(tmp_path, written, name, fault):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="export the release again"):
        Ranker.open(tmp_path)


def test_an_index_of_another_catalogue_is_refused(tmp_path, written):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    made().reordered(np.arange(0, ITEMS, 2)).write(tmp_path)
    with pytest.raises(ValueError, match="holds 3000 items of width 32, the catalogue 1500"):
        Ranker.open(tmp_path)


def test_codes_of_the_right_size_and_wrong_content_are_refused(tmp_path, written):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    size = (tmp_path / CODES).stat().st_size
    (tmp_path / CODES).write_bytes(b"\0" * size)
    with pytest.raises(ValueError, match="item index cannot be read"):
        Ranker.open(tmp_path)


def test_rows_in_another_order_than_the_cells_are_refused(tmp_path, written):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    made().write(tmp_path)
    with pytest.raises(ValueError, match="not in the same order"):
        Ranker.open(tmp_path)


def test_without_faiss_the_error_says_what_to_install(tmp_path, written, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="faiss-cpu"):
        Ranker.open(written)
    with pytest.raises(ExportError, match="faiss-cpu"):
        write_items(made(), tmp_path, APPROXIMATE, requests_for(made()))
    assert write_items(made(), tmp_path, TopkSettings(), None) is None  # an exact release does without it
    assert Ranker.open(tmp_path).catalogue.item_ids[0]


def test_without_instructions_there_is_nothing_to_verify_on(tmp_path):
    with pytest.raises(ExportError, match="verified"):
        write_items(made(), tmp_path, APPROXIMATE, None)


def test_an_exact_release_lies_by_label_and_answers_as_the_dataset_would(tmp_path):
    catalogue, asked = made(), requests_for(made())
    assert write_items(catalogue, tmp_path, TopkSettings(index="exact"), None) is None
    opened = Ranker.open(tmp_path)
    assert (np.diff(opened.catalogue.label_index) >= 0).all()
    found, best = ranked(opened, asked, 30), ranked(Ranker(catalogue), asked, 30)
    np.testing.assert_array_equal(found.score, best.score)
    np.testing.assert_array_equal(opened.catalogue.item_ids.take(found.items), catalogue.item_ids.take(best.items))


def test_the_same_catalogue_gives_the_same_bytes(tmp_path, written):
    write_items(made(), tmp_path, APPROXIMATE, requests_for(made()))
    for file in written.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_settings_decide_and_large_catalogues_get_an_index():
    assert not wants_index(APPROXIMATE_FROM - 1, TopkSettings())
    assert wants_index(APPROXIMATE_FROM, TopkSettings())
    assert not wants_index(APPROXIMATE_FROM, TopkSettings(index="exact"))
    assert wants_index(10, APPROXIMATE)
    section = read_section(ServingSettings, "serving", {"topk": {"index": "exact", "recall": 0.95}})
    assert section.topk == TopkSettings(index="exact", recall=0.95)


@pytest.mark.parametrize("value", [{"index": "hnsw"}, {"recall": 0}, {"recall": 1.01}, {"probes": 3}])
def test_a_bad_setting_is_named(value):
    with pytest.raises(ExportError, match=rf"serving\.topk\.{next(iter(value))}"):
        read_section(ServingSettings, "serving", {"topk": value})


def test_the_header_can_be_read(written):
    header = json.loads((written / HEADER).read_text())
    assert header["items"] == ITEMS
    assert header["width"] % 16 == 0
    assert header["codes_bytes"] == (written / CODES).stat().st_size
