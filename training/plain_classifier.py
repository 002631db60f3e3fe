"""Fits scikit-learn's classifiers, which plain baselines are, without advice that nobody can follow."""

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Classifier = TypeVar("Classifier", bound=Any)
FEW_EXAMPLES = "The number of unique classes is greater than 50% of the number of samples"


def fitted(classifier: Classifier, examples: Sequence[str] | npt.NDArray[np.float32], label_ids: Any) -> Classifier:
    """`classifier`, fitted on `examples` (texts, or vectors [n, H]) with `label_ids` [n].

    Raises:
        ValueError: scikit-learn cannot learn from them.
    """
    with warnings.catch_warnings():
        # scikit-learn suspects a regression where labels have one or two examples, which is what few shots are.
        warnings.filterwarnings("ignore", message=FEW_EXAMPLES, category=UserWarning)
        classifier.fit(examples, label_ids)
    return classifier
