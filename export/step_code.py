"""The code that a Python step brings along, so that a rollback brings back what was verified with the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.model_config import MODEL_REPOSITORY

__all__ = ["STEPS_CODE", "copy_code"]

STEPS_CODE = Path(__file__).resolve().parent.parent / "serving" / "steps"


def copy_code(step: str, folder: Path) -> None:
    """Copy a step's `model.py`, with the package `steps` beside it, into a version folder."""
    shutil.copy2(MODEL_REPOSITORY / step / "1" / "model.py", folder)
    shutil.copytree(STEPS_CODE, folder / "steps", ignore=shutil.ignore_patterns("__pycache__"))
    for package in (folder, folder / "steps"):
        # Python would write byte code here, and Triton reloads a model whose folder looks newer; a file of that name
        # prevents it.
        (package / "__pycache__").touch()
