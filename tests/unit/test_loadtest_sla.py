"""The verdict on what was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import LoadTestError
from loadtest.sla import Sla, read_sla
from loadtest.summary import Recorder, Summary

POSITIVE = st.floats(0.001, 1e6)
SHARE = st.floats(0, 1)
SLAS = st.fixed_dictionaries(
    {},
    optional={
        "p50_ms": POSITIVE,
        "p95_ms": POSITIVE,
        "p99_ms": POSITIVE,
        "max_error_rate": SHARE,
        "min_requests_per_second": POSITIVE,
    },
).filter(bool)


def measured(p50_ms=10.0, p95_ms=20.0, p99_ms=30.0, error_rate=0.0, requests_per_second=100.0):
    return Summary(
        requests=1000,
        failures=0,
        duration_s=10,
        requests_per_second=requests_per_second,
        error_rate=error_rate,
        asking=0.1,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        max_ms=p99_ms,
        releases={},
        errors={},
    )


SUMMARIES = st.builds(
    measured, p50_ms=POSITIVE, p95_ms=POSITIVE, p99_ms=POSITIVE, error_rate=SHARE, requests_per_second=POSITIVE
)


@pytest.mark.parametrize(
    ("bars", "met"),
    [
        ({"p50_ms": 10.0}, True),
        ({"p50_ms": 9.9}, False),
        ({"p95_ms": 20}, True),
        ({"p95_ms": 19}, False),
        ({"p99_ms": 30.0}, True),
        ({"p99_ms": 29.0}, False),
        ({"max_error_rate": 0.0}, True),
        ({"min_requests_per_second": 100.0}, True),
        ({"min_requests_per_second": 100.1}, False),
        ({"p50_ms": 60, "p95_ms": 150, "p99_ms": 300, "max_error_rate": 0.0, "min_requests_per_second": 20}, True),
        ({"p50_ms": 60, "p99_ms": 1}, False),
    ],
)
def test_bars_are_inclusive(bars, met):
    verdict = Sla(**bars).verdict(measured())
    assert verdict.met is met
    assert [criterion.name for criterion in verdict.criteria if criterion.name in bars] == list(bars)


def test_the_verdict_names_what_was_missed():
    verdict = Sla(p50_ms=5, p99_ms=60, max_error_rate=0.0).verdict(measured(error_rate=0.01))
    assert [(c.name, c.bar, c.side, c.measured, c.met) for c in verdict.criteria] == [
        ("p50_ms", 5.0, "at most", 10.0, False),
        ("p99_ms", 60.0, "at most", 30.0, True),
        ("max_error_rate", 0.0, "at most", 0.01, False),
    ]


@given(SLAS, SUMMARIES, st.sampled_from(["p50_ms", "p95_ms", "p99_ms", "error_rate"]), SHARE)
def test_a_smaller_latency_or_error_rate_never_loses_an_sla(bars, summary, name, factor):
    better = summary.model_copy(update={name: getattr(summary, name) * factor})
    sla = Sla(**bars)
    assert sla.verdict(better).met >= sla.verdict(summary).met


@given(SLAS, SUMMARIES, st.floats(1, 10))
def test_more_throughput_never_loses_an_sla(bars, summary, factor):
    better = summary.model_copy(update={"requests_per_second": summary.requests_per_second * factor})
    sla = Sla(**bars)
    assert sla.verdict(better).met >= sla.verdict(summary).met


@given(SLAS, SUMMARIES)
def test_an_sla_is_met_when_each_of_its_bars_is(bars, summary):
    lenient = {"max_error_rate": 1.0}  # else each would be judged by errors as well
    each = [
        Sla(**{**lenient, name: bar}).verdict(summary).met for name, bar in ({"max_error_rate": 0.0} | bars).items()
    ]
    assert Sla(**bars).verdict(summary).met is all(each)


def test_no_answer_meets_no_latency():
    recorder = Recorder()
    recorder.failed("DeadlineExceeded: …")
    nothing = recorder.summary(duration_s=1)
    assert nothing.p99_ms is None
    assert not Sla(p99_ms=1e9).verdict(nothing).met
    assert not Sla(max_error_rate=0.5).verdict(Recorder().summary(duration_s=1)).met


@pytest.mark.parametrize("rate_is_given", [False, True])
@pytest.mark.parametrize("bars", [{"p50_ms": 60.0}, {"min_requests_per_second": 1.0}])
def test_errors_that_nobody_allowed_lose_an_sla(bars, rate_is_given):
    verdict = Sla(**bars).verdict(measured(error_rate=0.99), rate_is_given=rate_is_given)
    assert not verdict.met
    assert [criterion.name for criterion in verdict.criteria if not criterion.met] == ["max_error_rate"]


def test_throughput_is_not_judged_where_the_rate_was_given():
    sla = Sla(p50_ms=60, min_requests_per_second=1000)
    assert not sla.verdict(measured()).met
    assert sla.verdict(measured(), rate_is_given=True).met


def test_the_section_of_a_domain_is_read(tmp_path):
    path = tmp_path / "ecommerce.yaml"
    path.write_text("domain: ecommerce\nsla: {p50_ms: 60, max_error_rate: 0.0}\nserving: {}\n")
    assert read_sla(path) == Sla(p50_ms=60, max_error_rate=0.0)


def test_bars_are_changed_for_once(tmp_path):
    path = tmp_path / "ecommerce.yaml"
    path.write_text("sla: {p50_ms: 60, p99_ms: 200}")
    assert read_sla(path, ["sla.p99_ms=1", "training.seed=7", "sla.p50_ms=null"]) == Sla(p99_ms=1)
    path.write_text("domain: ecommerce")
    assert read_sla(path, ["sla.p95_ms=100"]) == Sla(p95_ms=100)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sla.p90_ms=1", "override 'sla.p90_ms=1': write it as sla.KEY=VALUE, KEY of p50_ms, p95_ms"),
        ("sla.p99_ms", "override 'sla.p99_ms': write it as"),
        ("sla=1", "override 'sla=1': write it as"),
        ("sla.p99_ms=[", "the value is not valid YAML"),
        ("sla.p99_ms=fast", "sla.p99_ms: "),
    ],
)
def test_a_wrong_change_is_one_clear_line(tmp_path, override, said):
    path = tmp_path / "ecommerce.yaml"
    path.write_text("sla: {p50_ms: 60}")
    with pytest.raises(LoadTestError) as raised:
        read_sla(path, [override])
    assert said in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("domain: x", "no `sla:` section"),
        ("", "no `sla:` section"),
        ("sla: 60", "no `sla:` section"),
        ("sla: {}", "promises nothing"),
        ("sla: {p50_ms: null}", "promises nothing"),
        ("sla: {max_error_rate: null}", "sla.max_error_rate"),
        ("sla: {p90_ms: 60}", "sla.p90_ms"),
        ("sla: {p50_ms: -1}", "sla.p50_ms"),
        ("sla: {p50_ms: .inf}", "sla.p50_ms"),
        ("sla: {p50_ms: fast}", "sla.p50_ms"),
        ("sla: {max_error_rate: 1.5}", "sla.max_error_rate"),
        ("sla: {max_error_rate: true}", "sla.max_error_rate"),
        ("sla: {p50_ms: 60", "not YAML"),
        ("sla: {p50_ms: 2024-13-01}", "not YAML: month must be in"),
    ],
)
def test_a_wrong_section_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(LoadTestError) as raised:
        read_sla(path)
    assert said in raised.value.message
    assert str(path) in raised.value.message
    assert "\n" not in raised.value.message


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(LoadTestError, match=r"none\.yaml: cannot read"):
        read_sla(tmp_path / "none.yaml")


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=200), st.integers(0, 20))
def test_a_summary_counts_and_orders(latencies, failures):
    recorder = Recorder()
    for latency in latencies:
        recorder.answered(latency, "3")
    for _ in range(failures):
        recorder.failed("QueueFull: full")
    summary = recorder.summary(duration_s=2)
    assert summary.requests == len(latencies) + failures
    assert summary.error_rate == pytest.approx(failures / summary.requests)
    assert summary.requests_per_second == len(latencies) / 2
    assert summary.p50_ms <= summary.p95_ms <= summary.p99_ms <= summary.max_ms == max(latencies)
    assert sum(latency <= summary.p95_ms for latency in latencies) >= 0.95 * len(latencies)
    assert summary.releases == {"3": len(latencies)}
    assert summary.errors == ({"QueueFull: full": failures} if failures else {})
