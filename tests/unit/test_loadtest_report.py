"""What a report says beside its verdict."""

from datetime import datetime, timezone
from pathlib import Path

from test_loadtest_closed_loop import settings
from test_loadtest_sla import measured

from loadtest.report import Report, warnings, write_report
from loadtest.sla import Sla


def report(asking):
    summary = measured().model_copy(update={"asking": asking})
    verdict = Sla(p50_ms=60).verdict(summary)
    return Report(
        created=datetime.now(timezone.utc),
        settings=settings("127.0.0.1:1", Path("x.jsonl")),
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
