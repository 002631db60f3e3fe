"""Packages that only some settings need."""

import importlib.util

from training.errors import TrainingError


def is_installed(package: str) -> bool:
    """Whether `package` can be imported."""
    return importlib.util.find_spec(package) is not None


def require(package: str, extra: str) -> None:
    """Make sure that `package` is there; `extra` is the extra of this distribution that brings it.

    Raises:
        TrainingError: It is not installed.
    """
    if not is_installed(package):
        raise TrainingError(f"{package} is not installed; pip install 'instructrec[{extra}]'")
