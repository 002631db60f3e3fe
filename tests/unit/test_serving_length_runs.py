"""Batches split into runs of similar length: whole, in bounds, and at the least cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.steps.length_runs import LengthRun, split_into_runs

lengths_of = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def cost(runs: list[LengthRun], run_cost: int) -> int:
    return sum(run_cost + len(run.positions) * run.length for run in runs)


@given(lengths_of, st.sampled_from([1, 2, 16]), st.integers(0, 100), st.sampled_from([1, 64, 512]))
def test_every_text_is_in_one_run_that_holds_it(lengths, multiple, run_cost, tokens_a_run):
    runs = split_into_runs(lengths, multiple=multiple, run_cost=run_cost, tokens_a_run=tokens_a_run)
    assert sorted(np.concatenate([run.positions for run in runs]).tolist()) == list(range(len(lengths)))
    for run in runs:
        longest = max(lengths[row] for row in run.positions)
        assert run.length % multiple == 0
        assert longest <= run.length
        assert len(run.positions) == 1 or len(run.positions) * run.length <= tokens_a_run


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 60))
def test_no_split_of_the_sorted_texts_is_cheaper(lengths, run_cost):
    runs = split_into_runs(lengths, run_cost=run_cost, tokens_a_run=10_000)
    ordered = sorted(lengths)
    splits = (cuts for count in range(len(ordered)) for cuts in itertools.combinations(range(1, len(ordered)), count))
    cheapest = min(
        sum(
            run_cost + (stop - start) * ordered[stop - 1]
            for start, stop in zip((0, *cuts), (*cuts, len(ordered)), strict=True)
        )
        for cuts in splits
    )
    assert cost(runs, run_cost) == cheapest


@pytest.mark.parametrize(
    ("run_cost", "expected"),
    [(0, [10, 11, 40]), (16, [11, 40]), (1_000, [40])],
)
def test_runs_are_joined_where_padding_costs_less_than_a_run(run_cost, expected):
    runs = split_into_runs([10, 40, 11, 10, 40], run_cost=run_cost)
    assert sorted(run.length for run in runs) == expected


def test_a_large_run_is_cut_into_equal_parts():
    runs = split_into_runs([32] * 33, tokens_a_run=512)
    assert sorted(len(run.positions) for run in runs) == [11, 11, 11]


def test_equal_lengths_keep_their_order():
    [run] = split_into_runs([7, 7, 7, 7])
    assert run.positions.tolist() == [0, 1, 2, 3]
