"""Keeps text vectors on disk, so that a text goes through an encoder once."""

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.encoder_source import EncoderSource
from training.errors import TrainingError

logger = logging.getLogger(__name__)

LOOKUP = 10_000  # keys asked for in one query
CHUNK = 1_024  # texts embedded between two commits: what a killed run may lose
USUAL_BATCH_SIZE = 16  # of `training.embedding_batch_size`
ADVICE = "free some space, or check its rights"
Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """What makes vectors: an `InstructionModel`, or a graph that was exported of one."""

    @property
    def hidden_size(self) -> int:
        """The length of a vector."""

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> Vectors:
        """The vectors of `texts`, float32 [n, H], each of length 1."""


class EmbeddingCache:
    """Vectors of one encoder in a SQLite file, by the sha256 of the text. Several processes may use it at once.

    Batches of another size than the usual one give vectors that differ in their last bits: they are kept beside the
    others, by text and size. What a process with fewer threads makes differs so too: it has a cache of its own.
    A vector has length 1 by construction; one that has not was damaged on disk, counts as absent and is made again.
    """

    def __init__(
        self, folder: Path, encoder: str, pooling: str, max_length: int, usual_batch_size: int = USUAL_BATCH_SIZE
    ) -> None:
        """Open, or create, in `folder` the file of the encoder with this fingerprint, pooling and truncation.

        Raises:
            TrainingError: The folder cannot be made.
        """
        # Vectors of batches of other shapes, as they were made before, differ in their last bits.
        made = f"{encoder} {pooling} {max_length} in batches of one length"
        fingerprint = hashlib.sha256(made.encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be made ({error.strerror}); {ADVICE}") from None
        self.path = folder / f"{fingerprint[:32]}.sqlite3"
        self._usual_batch_size = usual_batch_size

    @classmethod
    def below(cls, var: Path, encoder: EncoderSource, pooling: str, max_length: int) -> "EmbeddingCache":
        """The cache of `encoder` that all commands share under `var`."""
        return cls(var / "cache" / "embeddings", encoder.fingerprint, pooling, max_length)

    def read(self, texts: Sequence[str], batch_size: int | None = None) -> dict[str, Vectors]:
        """The vectors that are there, float32 [H], by text; those of the usual batch size if none is given."""
        by_key = {self._key(text, batch_size): text for text in texts}
        keys = list(by_key)
        found: dict[str, Vectors] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), LOOKUP):
                query = "SELECT key, vector FROM vectors WHERE key IN (SELECT value FROM json_each(?))"
                for key, blob in connection.execute(query, (json.dumps(keys[start : start + LOOKUP]),)):
                    if len(blob) % 4 == 0 and _is_whole(vector := np.frombuffer(blob, dtype="<f4")):
                        found[by_key[key]] = vector
        return found

    def write(self, texts: Sequence[str], vectors: Vectors, batch_size: int | None = None) -> None:
        """Keep `vectors`, float32 [n, H], for `texts`; all of them or none. `batch_size` as in `read`."""
        keys = [self._key(text, batch_size) for text in texts]
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in zip(keys, vectors, strict=True)]
        with self._connection() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def embed(
        self,
        model: Embedder,
        texts: Sequence[str],
        batch_size: int,
        progress: Callable[[int], object] | None = None,
    ) -> Vectors:
        """The vectors of `texts`, float32 [n, H]; only new texts go through the encoder.

        `progress` is called with the number of distinct texts done since the last call.
        """
        return self.embed_with(lambda: model, model.hidden_size, texts, batch_size, progress)

    def embed_with(
        self,
        load_model: Callable[[], Embedder],
        hidden_size: int,
        texts: Sequence[str],
        batch_size: int,
        progress: Callable[[int], object] | None = None,
    ) -> Vectors:
        """As `embed`, with a model of `hidden_size` that is loaded only if there is a text without a vector."""
        distinct = list(dict.fromkeys(texts))
        known = self.read(distinct, batch_size)
        known = {text: vector for text, vector in known.items() if len(vector) == hidden_size}
        if progress is not None:
            progress(len(known))
        # Sorted here already, so that a chunk holds texts of like length and the commits cost no padding.
        missing = sorted((text for text in distinct if text not in known), key=len)
        if missing:
            model = load_model()
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                vectors = model.embed(chunk, batch_size=batch_size, progress=progress)
                self.write(chunk, vectors, batch_size)
                known.update(zip(chunk, vectors, strict=True))
        return np.stack([known[text] for text in texts]) if texts else np.empty((0, hidden_size), np.float32)

    def _key(self, text: str, batch_size: int | None) -> str:
        usual = batch_size in (None, self._usual_batch_size)
        return hashlib.sha256((text if usual else f"{batch_size}\0{text}").encode()).hexdigest()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._open()
        except sqlite3.OperationalError as error:
            raise TrainingError(f"{self.path}: cannot be used ({error}); {ADVICE}") from None
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            connection = self._open()
        try:
            yield connection
        except sqlite3.OperationalError as error:
            raise TrainingError(f"{self.path}: cannot be used ({error}); {ADVICE}") from None
        finally:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            # The default rollback journal, not WAL: switching to WAL fails at once under another process's lock.
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(problem)
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        logger.warning("The embedding cache %s is damaged (%s): kept as %s, made anew.", self.path, error, aside.name)
        self.path.rename(aside)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)


def _is_whole(vector: Vectors) -> bool:
    return bool(abs(float(vector @ vector) - 1.0) < 1e-3)
