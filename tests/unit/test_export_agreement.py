"""How the agreement of two sets of vectors on the best items is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.agreement import top_k_agreement


def test_top_k_agreement_counts_shared_items():
    items = np.eye(4, dtype=np.float32)
    one = np.array([[4, 3, 2, 1]], np.float32)
    assert top_k_agreement(one, one, items, 2) == 1
    assert top_k_agreement(one, np.array([[4, 1, 2, 3]], np.float32), items, 2) == 0.5
    assert top_k_agreement(one, -one, items, 2) == 0
    assert top_k_agreement(one, -one, items, 100) == 1  # all four items either way


@given(st.integers(1, 600), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_top_k_agreement_equals_a_plain_count(texts, k, seed):
    generator = np.random.default_rng(seed)
    items, one, other = (generator.normal(size=(size, 5)).astype(np.float32) for size in (11, texts, texts))
    plain = [
        len(set(np.argsort(-items @ first)[:k]) & set(np.argsort(-items @ second)[:k])) / min(k, 11)
        for first, second in zip(one, other, strict=True)
    ]
    assert top_k_agreement(one, other, items, k) == pytest.approx(np.mean(plain))


def test_items_that_are_equal_but_for_rounding_stand_for_each_other():
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(20, 64)).astype(np.float32)
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    items = np.repeat(kinds, 25, axis=0)
    items += generator.normal(size=items.shape).astype(np.float32) * np.float32(1e-8)
    texts = kinds[:8] + generator.normal(size=(2, 8, 64)).astype(np.float32) * np.float32(1e-3)
    assert top_k_agreement(*texts, items, 10) == 1
    assert top_k_agreement(kinds[:8], kinds[8:16], items, 10) == 0  # the best ten are another kind's, all of them
