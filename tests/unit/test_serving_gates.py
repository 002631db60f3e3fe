"""A release goes live only if it shows that it is no worse than allowed, and what is forced is remembered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import build_release

from serving.errors import GateError, ReleaseError, ServingError
from serving.evidence import EVIDENCE_NAME, Evidence, GraphVerdict, TaskResults, instruction_key
from serving.gates.gates import Gates, summary
from serving.gates.latency import LatencyComparison
from serving.gates.settings import GateSettings, read_settings
from serving.gates.task import NotComparableError, compare_task
from serving.releases import Release

LABELS = 30
ALL = GateSettings()


def results(predicted: np.ndarray, labels: np.ndarray, *, start: int = 0) -> TaskResults:
    """Results of labels predicted, with a ranking that follows them."""
    hits = (predicted == labels).astype(np.float64)
    keys = [instruction_key(str(start + row), f"words {start + row}", str(label)) for row, label in enumerate(labels)]
    return TaskResults.of(keys, {"top-1 label accuracy": hits, "NDCG@10": 0.2 + 0.7 * hits})


def head(seed: int, count: int, wrong: float) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and those that a head with some errors predicts."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, LABELS, count)
    predicted = np.where(generator.random(count) < wrong, (labels + 1) % LABELS, labels)
    return labels, predicted


def test_the_same_results_pass() -> None:
    labels, predicted = head(0, 100, 0.3)
    compared = compare_task(results(predicted, labels), results(predicted, labels), ALL)
    assert [one.passed for one in compared] == [True, True]
    assert [one.low for one in compared] == [0.0, 0.0]


def test_one_changed_answer_in_a_small_test_set_passes() -> None:
    """What another precision does to a run; measured on the sample data: one of 142."""
    labels, predicted = head(0, 142, 0.3)
    other = predicted.copy()
    other[np.flatnonzero(predicted == labels)[0]] = -1
    assert all(one.passed for one in compare_task(results(predicted, labels), results(other, labels), ALL))


@pytest.mark.parametrize("count", [60, 142, 1_000])
def test_a_head_whose_labels_are_permuted_is_refused(count: int) -> None:
    labels, predicted = head(1, count, 0.3)
    permuted = np.random.default_rng(2).permutation(LABELS)[predicted]
    compared = compare_task(results(predicted, labels), results(permuted, labels), ALL)
    assert not any(one.passed for one in compared)
    assert "points on" in str(compared[0])


def test_a_loss_as_large_as_the_margin_passes_seldom() -> None:
    """The burden of proof is the new release's: at the margin itself it passes in one case of twenty."""
    passed = 0
    for seed in range(30):
        generator = np.random.default_rng(seed)
        labels, predicted = head(seed, 400, 0.2)
        worse = np.where(generator.random(400) < ALL.accuracy_margin / 0.8, -1, predicted)
        passed += compare_task(results(predicted, labels), results(worse, labels), ALL)[0].passed
    assert passed <= 5


def test_only_instructions_that_both_were_tested_on_count() -> None:
    labels, predicted = head(3, 200, 0.3)
    live = results(predicted[:120], labels[:120])
    newer = results(predicted[40:], labels[40:], start=40)
    assert [one.instructions for one in compare_task(live, newer, ALL)] == [80, 80]
    with pytest.raises(NotComparableError, match=r"share 20 test instructions, 50 are needed \(gates\.min_instruc"):
        compare_task(live, results(predicted[100:], labels[100:], start=100), ALL)
    with pytest.raises(NotComparableError, match="the live release brings no results"):
        compare_task(None, newer, ALL)
    with pytest.raises(NotComparableError, match="the new one brings no results"):
        compare_task(live, None, ALL)


def test_no_release_passes_by_leaving_a_metric_out() -> None:
    keys = [instruction_key(str(row), "words", "label") for row in range(200)]
    right, low, nothing = np.ones(200), np.full(200, 0.5), np.full(200, np.nan)
    live = TaskResults.of(keys, {"top-1 label accuracy": right, "NDCG@10": low})
    for known in (0, 49):
        ranking = np.concatenate([np.zeros(known), nothing[known:]])
        newer = TaskResults.of(keys, {"top-1 label accuracy": right, "NDCG@10": ranking})
        with pytest.raises(NotComparableError, match=f"of NDCG@10 the two share {known} test instructions, 50 are"):
            compare_task(live, newer, ALL)
    few = TaskResults.of(keys, {"top-1 label accuracy": right, "NDCG@10": np.concatenate([low[:49], nothing[49:]])})
    assert [one.metric for one in compare_task(few, newer, ALL)] == ["top-1 label accuracy"]
    assert len(compare_task(few, live, ALL)) == 1, "the live release has too few results to be held against"


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.text(max_size=3), st.one_of(st.none(), st.floats(0, 1))), max_size=30),
)
def test_evidence_survives_being_written(rows: list[tuple[str, float | None]]) -> None:
    values = np.array([np.nan if value is None else value for _, value in rows])
    kept = TaskResults.of([key for key, _ in rows], {"NDCG@10": values})
    evidence = Evidence(verification=(GraphVerdict(graph="a.onnx"),), task=kept)
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    assert len(kept.instructions) == len({key for key, _ in rows})
    first: dict[str, float | None] = {}
    for key, value in rows:
        first.setdefault(key, value)
    assert kept.values("NDCG@10") == {key: round(value, 6) for key, value in first.items() if value is not None}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Release]:
    """Releases with evidence."""

    def build(number: int, evidence: Evidence | None) -> Release:
        built = build_release(tmp_path, number, {"encoder": (number, f"content {number}")})
        if evidence is not None:
            evidence.write(built.path)
        return built

    return build


def evidence(seed: int = 0, *, failed: tuple[str, ...] = (), permuted: bool = False) -> Evidence:
    labels, predicted = head(seed, 100, 0.2)
    if permuted:
        predicted = (predicted + 7) % LABELS
    return Evidence(verification=(GraphVerdict(graph="a.onnx", failed=failed),), task=results(predicted, labels))


def test_the_first_release_needs_its_verification_alone(release: Callable[..., Release]) -> None:
    gates = Gates(ALL)
    gates.check_files(release(1, evidence()), None)
    assert gates.failed == ()
    with pytest.raises(GateError, match=r"release 2 did not pass the gate `verification`: .*minimum cosine"):
        Gates(ALL).check_files(release(2, evidence(failed=("minimum cosine",))), None)
    with pytest.raises(GateError, match=r"no evidence of its verification.*FORCE=yes"):
        Gates(ALL).check_files(release(3, None), None)


def test_a_worse_release_is_refused_and_what_is_forced_is_remembered(release: Callable[..., Release]) -> None:
    live, worse = release(1, evidence()), release(2, evidence(permuted=True))
    with pytest.raises(GateError, match=r"gate `task`: against release 1, top-1 label accuracy -.* points"):
        Gates(ALL).check_files(worse, live)
    forced = Gates(ALL, force=True)
    forced.check_files(worse, live)
    assert forced.failed == ("task",), "both metrics, named once"
    assert [line.startswith("task: NOT PASSED") for line in summary(forced.findings)] == [False, True, True]


def test_a_live_release_without_results_is_compared_by_force_alone(release: Callable[..., Release]) -> None:
    newer, live = release(2, evidence()), release(1, None)
    with pytest.raises(GateError, match="cannot be compared with release 1: the live release brings no results"):
        Gates(ALL).check_files(newer, live)
    (live.path / EVIDENCE_NAME).write_text("{")
    with pytest.raises(GateError, match="cannot be compared"):
        Gates(ALL).check_files(newer, live)
    with pytest.raises(GateError, match="cannot be compared"):
        Gates(ALL).check_files(newer, Release(live.path.parent / "77"))


@pytest.mark.parametrize(
    "content", ["{", '{"schema_version": 1}', '{"schema_version": 2, "verification": [], "task": null}']
)
def test_damaged_evidence_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / EVIDENCE_NAME).write_text(content)
    with pytest.raises(ReleaseError, match=r"evidence\.json.*export the release again"):
        Evidence.read(tmp_path)


def test_latency_is_judged_pair_by_pair() -> None:
    def compared(*ratios: float) -> LatencyComparison:
        live = tuple(5.0 + turn for turn in range(len(ratios)))  # a machine that gets busier
        return LatencyComparison(live, tuple(a * b for a, b in zip(live, ratios, strict=True)), 1.5)

    assert compared(*[1.0] * 24).is_within
    assert compared(*[3.0] * 24).is_over
    unclear = compared(*[1.0, 3.0] * 12)
    assert not unclear.is_within
    assert not unclear.is_over
    assert not compared(*[1.0] * 19, *[100.0] * 5).is_over, "some slow answers are the machine's"
    assert compared(*[3.0] * 20, *[0.1] * 4).is_over
    assert compared(*[1.1] * 24).ratio == pytest.approx(1.1)


def test_settings_come_from_the_yaml_and_the_command_line(tmp_path: Path) -> None:
    assert read_settings(None).gates == GateSettings()
    path = tmp_path / "shop.yaml"
    path.write_text("domain: shop\ngates: {ndcg_margin: 0.01}\ncanary: {event: null}\n")
    found = read_settings(path, ["gates.latency_ratio=3", "training.seed=1"])
    assert (found.gates.ndcg_margin, found.gates.latency_ratio, found.canary.event) == (0.01, 3.0, None)
    wrong: dict[str, Any] = {
        "gates.margin=1": "gates.margin: Extra inputs.*knows accuracy_margin",
        "gates.ndcg_margin=-1": "gates.ndcg_margin",
        "gates": "write it as gates",
        "gates.ndcg_margin=2024-13-01": "no YAML value",
    }
    for override, message in wrong.items():
        with pytest.raises(ServingError, match=message):
            read_settings(path, [override])
    for content in ("gates: [", "gates: {ndcg_margin: 2024-13-01}"):
        path.write_text(content)
        with pytest.raises(ServingError, match="is not YAML"):
            read_settings(path)
    with pytest.raises(ServingError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")
