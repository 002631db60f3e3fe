"""Immutable strings as a release carries them, and their rows by content: flat, memory-mapped arrays."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def map_array(path: Path) -> Any:
    """Memory-map an array read-only, as a plain array: `np.memmap` would follow into every result computed from it."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped.view(np.ndarray)


class StringTable:
    """Immutable strings in two arrays, one of all UTF-8 bytes and one of offsets, memory-mapped when opened."""

    def __init__(self, blob: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        """Wrap the arrays: string i is `blob[offsets[i] : offsets[i + 1]]`."""
        self._blob = blob
        self._offsets = offsets
        self._content = blob.data

    def __len__(self) -> int:
        """How many strings there are."""
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        """String `index` as UTF-8 bytes."""
        return self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        """All strings in order, many times faster than one by one."""
        content, ends = self._blob.tobytes(), self._offsets.tolist()
        return (content[start:end] for start, end in itertools.pairwise(ends))

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """The strings at the given rows, as an object array of `bytes` of the same shape."""
        flat = rows.reshape(-1)
        starts, ends = self._offsets[flat].tolist(), self._offsets[flat + 1].tolist()
        taken = np.empty(len(flat), dtype=np.object_)
        taken[:] = [bytes(self._content[start:end]) for start, end in zip(starts, ends, strict=True)]
        return taken.reshape(rows.shape)

    def reordered(self, rows: npt.NDArray[np.int64]) -> StringTable:
        """A table, in memory, whose string i is this one's string `rows[i]`."""
        strings = list(self)
        return StringTable.of_bytes([strings[row] for row in rows.tolist()])

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """Make a table of strings, in memory."""
        return cls.of_bytes([text.encode("utf-8") for text in strings])

    @classmethod
    def of_bytes(cls, encoded: Sequence[bytes]) -> StringTable:
        """Make a table of strings that are UTF-8 already, in memory."""
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.bytes.npy` (uint8) and `<name>.offsets.npy` (int64) into a folder."""
        np.save(folder / f"{name}.bytes.npy", self._blob)
        np.save(folder / f"{name}.offsets.npy", self._offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> StringTable:
        """Map the two files that `write` made.

        Raises:
            ValueError: they do not fit each other.
        """
        blob, offsets = map_array(folder / f"{name}.bytes.npy"), map_array(folder / f"{name}.offsets.npy")
        if offsets[-1] != len(blob):
            raise ValueError(
                f"{name}.bytes.npy has {len(blob)} bytes, its offsets say {offsets[-1]}; export the release again"
            )
        return cls(blob, offsets)


class RowLookup:
    """Finds a string's row in a table through sorted checksums, which are mapped: nothing is built at load.

    A dictionary of a million ids would take 150 MB in every instance and seconds at every start.
    """

    def __init__(self, table: StringTable, checksums: npt.NDArray[np.uint32], rows: npt.NDArray[np.int32]) -> None:
        """Wrap the arrays: `checksums` ascend, `rows[i]` is the row whose CRC-32 is `checksums[i]`."""
        self._table = table
        self._checksums = checksums
        self._rows = rows

    def rows(self, strings: Sequence[bytes]) -> list[int]:
        """The row of each string, -1 for one that the table lacks."""
        if not strings:
            return []
        sought = np.fromiter(map(zlib.crc32, strings), np.uint32, len(strings))
        places = np.searchsorted(self._checksums, sought).tolist()
        return [
            self._row(string, checksum, place)
            for string, checksum, place in zip(strings, sought.tolist(), places, strict=True)
        ]

    def _row(self, string: bytes, checksum: int, place: int) -> int:
        """Compare the strings themselves: different ones may share a checksum, and then stand side by side."""
        while place < len(self._checksums) and self._checksums[place] == checksum:
            row = int(self._rows[place])
            if self._table[row] == string:
                return row
            place += 1
        return -1

    @classmethod
    def of(cls, table: StringTable) -> RowLookup:
        """Make the lookup of a table, in memory."""
        checksums = np.fromiter(map(zlib.crc32, table), np.uint32, len(table))
        rows = np.argsort(checksums, kind="stable").astype(np.int32)
        return cls(table, checksums[rows], rows)

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.checksums.npy` (uint32) and `<name>.rows.npy` (int32) into a folder."""
        np.save(folder / f"{name}.checksums.npy", self._checksums)
        np.save(folder / f"{name}.rows.npy", self._rows)

    @classmethod
    def open(cls, folder: Path, name: str, table: StringTable) -> RowLookup:
        """Map the two files that `write` made.

        Raises:
            ValueError: they do not fit the table.
        """
        checksums, rows = map_array(folder / f"{name}.checksums.npy"), map_array(folder / f"{name}.rows.npy")
        if not len(checksums) == len(rows) == len(table):
            raise ValueError(f"{name}.checksums.npy and {name}.bytes.npy differ in length; export the release again")
        return cls(table, checksums, rows)
