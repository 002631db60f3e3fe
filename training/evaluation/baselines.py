"""Plain baselines for labels, fitted anew for every report: what a run must be better than."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from training.dataset import wording
from training.evaluation.inputs import Inputs, Labels, SplitInputs
from training.evaluation.label_task import LabelScores
from training.head import sample_items
from training.metrics import zero_shot_label_scores
from training.plain_classifier import fitted
from training.score import Vectors

REGULARISATION = 20.0  # scikit-learn's C: vectors of length 1 want a weak pull to zero
TITLES_PER_LABEL = 20
MINIMUM_CLASSES = 2
Scorer = Callable[[SplitInputs], Vectors]


@dataclass(frozen=True)
class Baselines:
    """The fitted baselines. `taught_by` says in words what they learned from, `notes` why one is missing."""

    taught_by: str
    scorers: tuple[tuple[str, str, Scorer], ...]
    notes: tuple[str, ...]

    def scores(self, split: SplitInputs) -> list[LabelScores]:
        """What each baseline says of a split."""
        return [LabelScores(name, title, scorer(split)) for name, title, scorer in self.scorers]


def fit_baselines(inputs: Inputs) -> Baselines:
    """Fit logistic regression and SVM on the run's training instructions, on item titles where there are none."""
    texts, vectors, label_ids, taught_by = _examples(inputs)
    labels = len(inputs.run.labels)
    scorers: list[tuple[str, str, Scorer]] = []
    notes: list[str] = []
    if len(np.unique(label_ids)) < MINIMUM_CLASSES:
        notes.append("the trained baselines are left out: their examples have fewer than two labels")
    else:
        regression = logistic_regression(vectors, label_ids)
        scorers.append(
            (
                "logistic_regression",
                "base encoder + logistic regression",
                lambda split: class_scores(regression, split.base_h, labels),
            )
        )
        machine = _support_vector_machine(texts, label_ids)
        if machine is None:
            notes.append("TF-IDF + linear SVM is left out: its examples hold no words")
        else:
            scorers.append(
                ("tfidf_svm", "TF-IDF + linear SVM", lambda split: class_scores(machine, split.texts, labels))
            )
    names = inputs.base_encoder.embed(inputs.run.labels, "label names")
    scorers += [
        (
            "zero_shot_item",
            "zero-shot: nearest item",
            lambda split: zero_shot_label_scores(split.base_h, inputs.base_catalogue, labels),
        ),
        ("zero_shot_label_name", "zero-shot: nearest label name", lambda split: split.base_h @ names.T),
    ]
    return Baselines(taught_by, tuple(scorers), tuple(notes))


def _examples(inputs: Inputs) -> tuple[Sequence[str], Vectors, Labels, str]:
    train = inputs.splits["train"].labelled()
    if len(train):
        return train.texts, train.base_h, train.label_ids, f"the {len(train):,} training instructions"
    # Without training instructions, the validation ones are titles too.
    asked = {wording(text) for text in inputs.splits["test"].texts}
    rows = sample_items(inputs.items, TITLES_PER_LABEL, inputs.settings.seed, asked)
    titles = [inputs.items[row].title for row in rows]
    vectors = inputs.base_encoder.embed(titles, "item titles")
    taught_by = f"{len(rows):,} item titles (up to {TITLES_PER_LABEL} a label), as there are no training instructions"
    return titles, vectors, inputs.catalogue.label_ids[rows], taught_by


def logistic_regression(vectors: Vectors, label_ids: Labels) -> LogisticRegression:
    """Multinomial logistic regression on vectors [n, H] of at least two labels."""
    return fitted(LogisticRegression(C=REGULARISATION, max_iter=1_000), vectors, label_ids)


def _support_vector_machine(texts: Sequence[str], label_ids: Labels) -> Any:
    """Words and pairs of words, weighted by TF-IDF, into a linear SVM; None if the texts hold no words."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")  # noqa: S106 - a pattern of words
    pipeline = make_pipeline(vectorizer, LinearSVC(random_state=0))
    try:
        return fitted(pipeline, list(texts), label_ids)
    except ValueError as error:
        if "empty vocabulary" in str(error):
            return None
        raise


def class_scores(classifier: Any, examples: Any, labels: int) -> Vectors:
    """A scikit-learn classifier's decision values as scores of all labels, float32 [n, K]; -inf for untaught ones."""
    decisions = classifier.decision_function(examples)
    if decisions.ndim == 1:  # of two classes scikit-learn gives the second one's value only
        decisions = np.stack([-decisions, decisions], axis=1)
    scores = np.full((len(decisions), labels), -np.inf, dtype=np.float32)
    scores[:, classifier.classes_] = decisions
    return scores
