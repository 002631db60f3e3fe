import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from training.config import TrainingConfig
from training.convex_head import best_temperature, least_cross_entropy, one_hot
from training.head import HeadExamples, equally_weighted, tune_ridge_heads, tune_weighted_head


def clusters(seed: int, examples: int, labels: int = 4, width: int = 12, noise: float = 0.3) -> HeadExamples:
    directions = np.random.default_rng(99).normal(size=(labels, width))
    generator = np.random.default_rng(seed)
    label_ids = np.arange(examples) % labels
    vectors = directions[label_ids] + noise * generator.normal(size=(examples, width)) * np.sqrt(width)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return equally_weighted(vectors.astype(np.float32), label_ids.astype(np.int64))


def accuracy(weight, bias, examples: HeadExamples) -> float:
    return float(np.mean((examples.vectors @ weight.T + bias).argmax(axis=1) == examples.label_ids))


def test_it_is_the_weighted_logistic_regression_of_scikit_learn():
    examples, penalty = clusters(0, 80), 1e-3
    weights = np.random.default_rng(1).uniform(0.1, 2, size=80)
    centre = np.zeros((4, 13))
    head = least_cross_entropy(
        examples.vectors, one_hot(examples.label_ids, 4), weights, centre=centre, pull=penalty, iterations=2_000
    )
    reference = LogisticRegression(C=1 / (penalty * weights.sum()), fit_intercept=False, tol=1e-8, max_iter=5_000)
    constant = np.concatenate([examples.vectors, np.ones((80, 1))], axis=1)
    reference.fit(constant, examples.label_ids, sample_weight=weights)
    ours = np.exp(constant @ head.T)
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), reference.predict_proba(constant), atol=2e-3)


def test_a_strong_pull_keeps_the_head_where_it_is_pulled_to():
    examples = clusters(0, 40)
    centre = np.random.default_rng(3).normal(size=(4, 13))
    head = least_cross_entropy(
        examples.vectors, one_hot(examples.label_ids, 4), examples.weights, centre=centre, pull=1e6
    )
    np.testing.assert_allclose(head, centre, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 10.0), st.integers(0, 1_000))
def test_the_temperature_undoes_how_much_logits_were_multiplied(factor, seed):
    generator = np.random.default_rng(seed)
    label_ids = generator.integers(0, 5, size=300)
    logits = generator.normal(size=(300, 5)) + 2.0 * np.eye(5)[label_ids]
    plain, loss = best_temperature(logits, label_ids)
    scaled, scaled_loss = best_temperature(logits * factor, label_ids)
    assert scaled == pytest.approx(plain * factor, rel=0.02)
    assert scaled_loss == pytest.approx(loss, abs=1e-4)


def test_the_ridge_heads_are_tempered_for_the_validation_split_and_the_best_is_taken():
    train, validation = clusters(0, 40), clusters(1, 200)
    config = TrainingConfig(ridge_penalties=(1e-2, 1e-5), epochs=100)
    heads = tune_ridge_heads(train, validation, 4, config)
    assert [head.ridge_penalty for head in heads] == [1e-2, 1e-5]
    for head in heads:
        logits = (validation.vectors @ head.weight.T + head.bias).astype(np.float64)
        temperature, loss = best_temperature(logits, validation.label_ids)
        assert temperature == pytest.approx(1, abs=0.01)
        assert loss == pytest.approx(head.validation_loss, abs=1e-4)
    none = HeadExamples(np.empty((0, 12), np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
    misleading = np.random.default_rng(5).normal(size=(4, 12)).astype(np.float32)
    best = tune_weighted_head(train, none, validation, misleading, TrainingConfig(epochs=1, ridge_penalties=(1e-5,)))
    assert best.ridge_penalty == 1e-5
    assert accuracy(best.weight, best.bias, validation) > 0.8


def test_without_validation_no_temperature_can_be_found_so_no_ridge_head_is_tried():
    train = clusters(0, 40)
    none = HeadExamples(np.empty((0, 12), np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
    centroids = np.eye(4, 12, dtype=np.float32)
    assert tune_weighted_head(train, none, none, centroids, TrainingConfig(epochs=5)).ridge_penalty is None
