"""The numbers of the evaluation report against known cases and their bounds."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from training.dataset import Item
from training.evaluation.baselines import _support_vector_machine, logistic_regression
from training.evaluation.bootstrap import Bootstrap
from training.evaluation.calibration import (
    best_temperature,
    bin_of,
    brier_scores,
    expected_calibration_error,
    measure_calibration,
    probabilities,
)
from training.evaluation.catalogue_ranking import Bm25, best_rows
from training.evaluation.confusion import confusions
from training.evaluation.coverage import gini, percentiles
from training.evaluation.label_task import LabelScores, compare_labels, macro_f1, measure_labels
from training.evaluation.learning_curve import draw_shots
from training.evaluation.perturbations import PERTURBATIONS, drop_words, perturb, typos
from training.evaluation.tables import nested, plain_text
from training.metrics import label_accuracy
from training.plain_classifier import fitted

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
labelled = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(values)
def test_an_interval_lies_within_the_values_and_around_the_resamples(sample: list[float]) -> None:
    found = Bootstrap(len(sample), seed=0, resamples=200).mean(sample).estimate()
    slack = 1e-9 * (1 + max(map(abs, sample)))
    assert found.value == pytest.approx(np.mean(sample), abs=slack)
    assert min(sample) - slack <= found.low <= found.high <= max(sample) + slack


def test_resamples_repeat_with_the_seed_and_differ_without() -> None:
    sample = np.arange(30.0)
    first, again, other = (Bootstrap(30, seed, 100).mean(sample).resampled for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_interval_is_as_wide_as_the_normal_one() -> None:
    sample = np.random.default_rng(0).normal(size=400)
    found = Bootstrap(400, seed=0, resamples=4_000).mean(sample).estimate()
    half = 1.96 * sample.std() / 20
    assert (found.low, found.high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.1 * half)


def test_a_paired_difference_of_equals_is_nothing() -> None:
    bootstrap, sample = Bootstrap(20, 0, 50), np.arange(20.0)
    shifted = bootstrap.mean(sample + 3).minus(bootstrap.mean(sample)).estimate()
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((3, 3, 3))


def test_nothing_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="0 observations"):
        Bootstrap(0, 0)


@FEW
@given(labelled)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    found = macro_f1(predicted, truth, Bootstrap(len(pairs), 0, 20))
    assert found.value == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert ((found.resampled >= 0) & (found.resampled <= 1)).all()


def test_a_resample_is_measured_as_the_sample_is() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 4, (2, 50))
    drawn = np.random.default_rng(5).integers(0, 50, 50)
    found = macro_f1(predicted, truth, Bootstrap(50, seed=5, resamples=1))
    assert found.resampled[0] == pytest.approx(f1_score(truth[drawn], predicted[drawn], average="macro"))


def test_label_metrics_agree_with_the_trainings_own() -> None:
    generator = np.random.default_rng(0)
    scores, truth = generator.normal(size=(60, 5)).astype(np.float32), generator.integers(0, 5, 60)
    measured = measure_labels(scores, truth, Bootstrap(60, 0, 20))
    for name, value in label_accuracy(scores, truth).items():
        assert measured[name].value == pytest.approx(value)


def test_the_tuned_system_is_held_against_the_best_of_the_others() -> None:
    truth = np.array([0, 1, 1, 0])
    right = np.eye(2, dtype=np.float32)[truth]
    systems = [LabelScores("tuned", "t", right), LabelScores("worst", "w", -right), LabelScores("best", "b", right)]
    difference = compare_labels(systems, truth, Bootstrap(4, 0, 50))["difference"]
    assert difference["baseline"] == "best"
    assert difference["top1_accuracy"].value == 0


def test_calibration_error_of_a_known_case() -> None:
    confidences = np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    correct = np.array([True, True, True, False, True, False])
    found = expected_calibration_error(confidences, correct, Bootstrap(6, 0, 20))
    assert found.value == pytest.approx((4 * abs(0.75 - 0.9) + 2 * abs(0.5 - 0.55)) / 6)


@FEW
@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_lies_between_bias_and_one(pairs: list[tuple[float, bool]]) -> None:
    confidences, correct = np.array([p for p, _ in pairs]), np.array([c for _, c in pairs])
    found = expected_calibration_error(confidences, correct, Bootstrap(len(pairs), 0, 20))
    assert abs((correct - confidences).mean()) - 1e-12 <= found.value <= 1 + 1e-12
    assert ((bin_of(confidences) >= 0) & (bin_of(confidences) < 15)).all()


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    assert bin_of(np.array([1e-9, 0.2, 0.2000001, 1.0])).tolist() == [0, 2, 3, 14]


def test_brier_scores_run_from_nothing_to_two() -> None:
    shares = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert brier_scores(shares, np.array([0, 0, 0])).tolist() == [0, 2, 0.5]


def test_the_temperature_undoes_a_known_sharpening() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(4_000, 4))
    shares = probabilities(logits.astype(np.float32))
    truth = (generator.random((4_000, 1)) < shares.cumsum(axis=1)).argmax(axis=1)
    sharpened = (3 * logits).astype(np.float32)
    temperature = best_temperature(sharpened, truth)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = (measure_calibration(sharpened, truth, Bootstrap(4_000, 0, 5), t) for t in (1.0, temperature))
    assert after["expected_calibration_error"].value < 0.3 * before["expected_calibration_error"].value
    assert sum(part["instructions"] for part in before["bins"]) == 4_000


def test_huge_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32)
    found = measure_calibration(logits, np.array([1, 1]), Bootstrap(2, 0, 5))
    assert np.isfinite(found["cross_entropy"].value)


@FEW
@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_gini_is_a_share_and_does_not_know_the_unit(amounts: list[int]) -> None:
    assert -1e-12 <= gini(amounts) < 1
    assert gini([7 * amount for amount in amounts]) == pytest.approx(gini(amounts))


def test_gini_of_known_cases() -> None:
    assert gini([3, 3, 3]) == pytest.approx(0)
    assert gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert gini([0, 0]) == 0


@FEW
@given(values)
def test_percentiles_have_the_mean_fifty(sample: list[float]) -> None:
    assert percentiles(np.array(sample)).mean() == pytest.approx(50)


@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 12))
def test_best_rows_are_those_of_a_stable_sort(scores: list[int], count: int) -> None:
    array = np.array(scores, dtype=np.float32)
    assert best_rows(array, count).tolist() == np.argsort(-array, kind="stable")[:count].tolist()


def test_bm25_prefers_the_rarer_word_and_stands_texts_without_words() -> None:
    items = [Item(str(n), "", text, "x") for n, text in enumerate(["red shirt", "red shoe", "red hat", "..."])]
    scores = Bm25(items).scores(["a red shoe", "zebra", ""])
    assert scores.shape == (3, 4)
    assert scores[0].argmax() == 1
    assert not scores[1:].any()
    assert not Bm25([Item("1", "", "?!", "x")]).scores(["shoe"]).any()


def test_confusions_are_counted_most_frequent_first() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    found = confusions(predicted, truth, ["a", "b", "c"])
    assert found["errors"] == 3
    assert found["frequent"][0] == {"label": "a", "read_as": "b", "count": 2, "of": 3}
    order = found["worst_labels"]
    assert found["matrix"][order.index("a")][order.index("b")] == 2
    assert sum(map(sum, found["matrix"])) + sum(found["others"]) == 6


@FEW
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 5))
def test_shots_are_up_to_so_many_of_each_label(label_ids: list[int], shots: int, seed: int) -> None:
    ids = np.array(label_ids)
    drawn = draw_shots(ids, shots, seed)
    assert len(set(drawn)) == len(drawn)
    np.testing.assert_array_equal(
        np.bincount(ids[drawn], minlength=5), np.minimum(np.bincount(ids, minlength=5), shots)
    )


@FEW
@given(st.text(max_size=60))
def test_perturbations_repeat_and_never_empty_a_text(text: str) -> None:
    for perturbation in PERTURBATIONS:
        first, again = (perturb(["other", text], perturbation, seed=3) for _ in range(2))
        assert first == again
        assert bool(first[1].strip()) or not text.strip()


def test_typos_and_dropped_words_come_at_their_rate() -> None:
    text = "abcdefghij " * 400
    generator = np.random.default_rng(0)
    assert len(drop_words(text, generator).split()) == pytest.approx(320, abs=30)
    written = typos(text, generator)
    assert written != text
    assert written.split()[:400].count("abcdefghij") == pytest.approx(400 * 0.95**10, abs=50)
    assert typos("日本", generator)


def test_any_nested_numbers_become_tables() -> None:
    tree = {
        "people": 12,
        "ranking": {"ndcg@10": 0.5, "mrr": {"value": 0.25, "low": 0.2, "high": 0.3}},
        "without": {"ndcg@10": 0.4},
        "cold": {"start": {"people": 3, "decays": [0.5, 1.0]}},
    }
    text = nested(tree)
    for expected in ("| people | 12 |", "| ranking | 0.500 | 0.250 (0.200 to 0.300) |", "| without | 0.400 | – |"):
        assert expected in text
    assert "| start | 3 | 0.500, 1.000 |" in text


def test_a_label_means_nothing_to_markdown() -> None:
    assert plain_text("a|b\n*c* <d>") == "a\\|b \\*c\\* &lt;d&gt;"


def test_few_examples_a_label_are_learned_from_without_a_warning() -> None:
    vectors, ids = np.eye(30, dtype=np.float32), np.arange(30)
    texts = [f"word{number} thing" for number in ids]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (logistic_regression(vectors, ids).predict(vectors) == ids).all()
        assert (_support_vector_machine(texts, ids).predict(texts) == ids).all()


def test_other_warnings_of_a_fit_are_heard() -> None:
    class Loud:
        def fit(self, *_: object) -> None:
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        fitted(Loud(), np.eye(2, dtype=np.float32), [0, 1])
