"""What a report says beside its verdict."""

from datetime import datetime, timezone
from pathlib import Path

import pytest
from test_loadtest_closed_loop import settings
from test_loadtest_sla import measured

from loadtest.report import Report, failures, warnings, write_report
from loadtest.sla import Sla
from loadtest.summary import Recorder


def report(asking=0.1, expected_release=None, **changed):
    summary = measured().model_copy(update={"asking": asking, **changed})
    verdict = Sla(p50_ms=60).verdict(summary)
    return Report(
        created=datetime.now(timezone.utc),
        settings=settings("127.0.0.1:1", Path("x.jsonl")),
        expected_release=expected_release,
        sla=Sla(p50_ms=60),
        closed_loop=summary,
        closed_loop_verdict=verdict,
        open_loop=None,
        open_loop_verdict=None,
        met=verdict.met,
    )


def test_a_load_test_that_was_busy_itself_says_so(tmp_path):
    busy = report(0.97)
    assert len(warnings(busy)) == 1
    write_report(busy, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "Beware: closed loop: the load test itself was busy for 97% of a core" in markdown
    assert "| asking core |" in markdown
    assert warnings(report(0.5)) == []


@pytest.mark.parametrize(
    ("expected", "releases", "said"),
    [
        ("2", {"2": 100}, None),
        ("2", {}, None),
        (None, {"7": 100}, None),
        ("2", {"3": 100}, "answered by release 3 (100 times), where release 2 was to be measured"),
        ("2", {"3": 60, "2": 40}, "answered by release 2 (40 times), 3 (60 times), where release 2 was to be measured"),
        (None, {"1": 60, "2": 40}, "answered by releases 1 (60 times), 2 (40 times)"),
    ],
)
def test_another_release_than_the_one_to_be_measured_is_told(expected, releases, said, tmp_path):
    doubtful = report(expected_release=expected, releases=releases)
    assert [said in warning for warning in warnings(doubtful)] == ([] if said is None else [True])
    write_report(doubtful, tmp_path)
    assert ("Beware" in (tmp_path / "report.md").read_text()) == (said is not None)


def test_failures_of_many_messages_and_lines_are_a_short_table(tmp_path):
    recorder = Recorder()
    for row in range(40):
        recorder.failed(f"ServerError: it failed in row {row}\n\nAt:\n  model.py(12): execute | run")
    for _ in range(3):
        recorder.failed("QueueFull: full")
    failed = report(errors=recorder.summary(1.0).errors)
    assert failures(failed)[0] == ("closed loop", "QueueFull: full", 3)
    assert failures(failed)[-1] == ("closed loop", "36 other reasons, in report.json", 36)
    write_report(failed, tmp_path)
    table = (tmp_path / "report.md").read_text().partition("## Failures\n\n")[2].splitlines()
    assert len(table) == 2 + len(failures(failed)) == 8
    assert table[3] == "| closed loop | ServerError: it failed in row 0 At: model.py(12): execute \\| run | 1 |"
