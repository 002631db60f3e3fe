"""The embedding cache: what it keeps apart, and what damage, other writers and kills leave of it."""

import contextlib
import hashlib
import itertools
import logging
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from training.embedding_cache import EmbeddingCache
from training.model import InstructionModel


@pytest.fixture
def model(tiny_encoder: Path) -> InstructionModel:
    return InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2)


def embed_count(cache: EmbeddingCache, model: InstructionModel, texts: list[str], batch_size: int = 8) -> int:
    """Embed `texts` through the cache; the number that went through the encoder."""
    done: list[str] = []
    original = model.embed

    def counted(chunk: list[str], **options: object) -> object:
        done.extend(chunk)
        return original(chunk, **options)  # type: ignore[arg-type]

    model.embed = counted  # type: ignore[assignment, method-assign]
    try:
        vectors = cache.embed(model, texts, batch_size=batch_size)
    finally:
        model.embed = original  # type: ignore[method-assign]
    np.testing.assert_allclose(vectors, original(texts), atol=1e-5)
    return len(done)


def test_a_text_is_embedded_once(tmp_path: Path, model: InstructionModel) -> None:
    cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
    assert embed_count(cache, model, ["a", "b", "a", "é 🎉"]) == 3
    assert embed_count(cache, model, ["b", "c", "é 🎉"]) == 1
    assert embed_count(EmbeddingCache(tmp_path, "other weights", "mean", 32), model, ["a"]) == 1
    assert cache.embed(model, [], batch_size=8).shape == (0, 32)


def test_vectors_of_batches_of_another_size_are_kept_apart(tmp_path: Path, model: InstructionModel) -> None:
    cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
    cache.embed(model, ["a", "b"], batch_size=16)
    with contextlib.closing(sqlite3.connect(cache.path)) as connection:
        keys = {key for (key,) in connection.execute("SELECT key FROM vectors")}
    assert keys == {hashlib.sha256(text.encode()).hexdigest() for text in "ab"}, "as caches have always been"
    assert embed_count(cache, model, ["a", "b"], batch_size=8) == 2
    for size in (8, 16):
        assert embed_count(cache, model, ["a", "b"], batch_size=size) == 0


@pytest.mark.parametrize("content", [b"this is no database, and long enough to be read as one" * 40, b"short"])
def test_a_damaged_file_is_set_aside(
    tmp_path: Path, model: InstructionModel, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
    cache.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert embed_count(cache, model, ["a"]) == 1
        assert embed_count(cache, model, ["a"]) == 0
    assert len([record for record in caplog.records if "damaged" in record.message]) == 1
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged-*")] == [content]


@pytest.mark.parametrize("blob", [b"", b"abc", np.full(32, 9, "<f4").tobytes(), np.full(32, np.nan, "<f4").tobytes()])
def test_a_damaged_vector_is_made_again(tmp_path: Path, model: InstructionModel, blob: bytes) -> None:
    cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
    embed_count(cache, model, ["a", "b"])
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE vectors SET vector = ?", (blob,))
    connection.close()
    assert embed_count(cache, model, ["a", "b"]) == 2
    assert embed_count(cache, model, ["a", "b"]) == 0


def test_several_writers_share_a_cache(tmp_path: Path) -> None:
    vectors = np.eye(32, dtype=np.float32)
    texts = [str(number) for number in range(32)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
                cache.write(texts, vectors)
                assert len(cache.read(texts)) == 32
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_killed_run_keeps_its_progress(
    tmp_path: Path, model: InstructionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.embedding_cache.CHUNK", 2)
    cache = EmbeddingCache(tmp_path, "weights", "mean", 32)
    done = itertools.count(1)

    def killed(_: int) -> None:
        if next(done) == 3:  # the call for what is known, one chunk, and then within the second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.embed(model, ["a", "b", "c", "d"], batch_size=2, progress=killed)
    assert len(cache.read(["a", "b", "c", "d"], batch_size=2)) == 2
