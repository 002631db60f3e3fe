"""Rows of a matrix that stays in its file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


class RowFile:
    """Reads single rows of a float32 `.npy` matrix with `pread`.

    The pages stay in the system's cache, which all processes share and which shrinks under pressure; mapped ones would
    count as the process's own memory, a neighbourhood of 64 KB for each row once touched.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ValueError: it is not a C-ordered float32 matrix of its own length.
        """
        with path.open("rb") as handle:
            version = npy.read_magic(handle)  # type: ignore[no-untyped-call]
            if version != (1, 0):
                raise ValueError(f"{path.name} has an unknown header; export the release again")
            shape, by_columns, dtype = npy.read_array_header_1_0(handle)  # type: ignore[no-untyped-call]
            self._start = handle.tell()
            if by_columns or dtype != np.float32 or len(shape) != 2:
                raise ValueError(f"{path.name} is not a float32 matrix; export the release again")
            if os.fstat(handle.fileno()).st_size != self._start + shape[0] * shape[1] * 4:
                raise ValueError(f"{path.name} is not as long as it says; export the release again")
            self._descriptor = os.dup(handle.fileno())
        self.shape: tuple[int, int] = shape

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The given rows, float32 [rows, D], in their order."""
        width = self.shape[1] * 4
        taken = bytearray(len(rows) * width)
        view = memoryview(taken)
        for place, row in enumerate(rows.tolist()):
            os.preadv(self._descriptor, [view[place * width : (place + 1) * width]], self._start + row * width)
        return np.frombuffer(taken, np.float32).reshape(len(rows), self.shape[1])

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)
