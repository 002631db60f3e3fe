"""A stream of steps, and what becomes of heads that follow it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.settings import ContinualSettings
from continual.stream import (
    Stream,
    System,
    continual,
    equal_steps,
    follow_stream,
    full_retraining,
    naive_tuning,
    parts_of,
)
from continual.stream_report import draw, markdown, numbers


def labels_that_come_one_after_the_other(steps: int = 3, each: int = 120) -> Stream:
    """Each step brings labels of its own and none of the others'."""
    chooser = np.random.default_rng(0)
    ids = np.concatenate([2 * step + chooser.integers(0, 2, each) for step in range(steps)])
    vectors = (np.eye(2 * steps, 16)[ids] + 0.3 * chooser.normal(size=(len(ids), 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"text {number}" for number in range(len(ids))]
    step = np.repeat(np.arange(steps), each)
    labels = tuple(f"label {number}" for number in range(2 * steps))
    return Stream(vectors, ids, labels, step, parts_of(texts), tuple(f"2020-0{one + 1}-01" for one in range(steps)))


def test_the_loop_keeps_what_naive_tuning_forgets(tmp_path: Path) -> None:
    stream = labels_that_come_one_after_the_other()
    systems = [
        System("full retraining", full_retraining),
        continual(ContinualSettings()),
        System("naive fine-tuning", naive_tuning),
    ]
    full, ours, naive = courses = [follow_stream(stream, system) for system in systems]
    assert naive.forgetting.value > 30
    assert ours.forgetting.value < 10
    assert ours.final.value > naive.final.value + 20
    assert ours.final.value > full.final.value - 5
    assert ours.forgetting.low <= ours.forgetting.value <= ours.forgetting.high
    assert "| continual |" in markdown(stream, courses)
    assert b"naive fine-tuning" in numbers(stream, courses)
    draw(stream, courses, tmp_path / "plot.png", "a stream")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@given(st.lists(st.floats(-1e9, 1e9), min_size=10, max_size=200), st.integers(2, 10))
def test_steps_hold_as_many_texts_and_come_in_the_order_of_time(moments: list[float], steps: int) -> None:
    step = equal_steps(moments, steps)
    counts = np.bincount(step, minlength=steps)
    assert counts.max() - counts.min() <= 1
    for one in range(steps - 1):
        assert max(np.array(moments)[step == one]) <= min(np.array(moments)[step == one + 1])


@given(st.lists(st.text(), min_size=1, max_size=50))
def test_a_text_is_always_in_the_same_part(texts: list[str]) -> None:
    parts = parts_of([*texts, *texts])
    assert (parts[: len(texts)] == parts[len(texts) :]).all()
    assert set(parts) <= {"train", "validation", "test"}


def test_the_parts_have_their_shares() -> None:
    parts = parts_of([f"text {number}" for number in range(5_000)])
    assert np.mean(parts == "train") == pytest.approx(0.6, abs=0.03)
    assert np.mean(parts == "test") == pytest.approx(0.25, abs=0.03)
