"""The benchmark's arithmetic: shares of the encoder's best rate in the same round, medians over the rounds."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from loadtest.benchmark.__main__ import measure
from loadtest.benchmark.bare_encoder import joined
from loadtest.benchmark.cores import Cores, listener
from loadtest.benchmark.release_files import ReleaseFiles
from loadtest.errors import LoadTestError


def test_a_ratio_is_of_the_best_encoder_of_the_same_round() -> None:
    speed = iter([1.0, 2.0, 4.0])  # the machine gets faster from round to round

    class Drift:
        factor = 1.0

    def encoder() -> tuple[float, float]:
        Drift.factor = next(speed)
        return 1.0, 100 * Drift.factor

    found = measure(
        {
            "encoder alone, batch 1": encoder,
            "encoder alone, batch 8": lambda: (8.0, 200 * Drift.factor),
            "fused, 32 in flight": lambda: (40.0, 150 * Drift.factor),
        },
        rounds=3,
    )
    assert [one.ratio for one in found] == [0.5, 1.0, 0.75]
    assert found[2].ratios == (0.75, 0.75, 0.75)
    assert found[2].per_second == 300


def test_rows_are_padded_to_the_longest() -> None:
    feed = joined([[5, 6, 7], [8]])
    np.testing.assert_array_equal(feed["input_ids"], [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(feed["attention_mask"], [[1, 1, 1], [1, 0, 0]])


def test_the_process_that_listens_is_found_and_none_is_an_error() -> None:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        open_socket.listen()
        port = open_socket.getsockname()[1]
        assert listener(port) == os.getpid()
    with pytest.raises(LoadTestError, match=f"port {port}"):
        listener(port)


def test_a_core_is_kept_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    if len(before) > 1:
        cores = Cores.here()
        with cores.working_on(frozenset({cores.measured})):
            assert os.sched_getaffinity(0) == {cores.measured}
        assert os.sched_getaffinity(0) == before
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(LoadTestError, match="two cores"):
        Cores.here()


def test_a_folder_without_a_release_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="no release of shop"):
        ReleaseFiles.of(tmp_path, "shop")
