"""The process in which Locust runs: settings on stdin, a summary and Locust's HTML report in the folder named."""

from __future__ import annotations

from loadtest import users  # patches the standard library, so it comes first

# isort: split
import argparse
import os
import sys
import time
import traceback
from pathlib import Path

import gevent
from instructrec_client import Recommendations
from locust import events
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from loadtest.closed_loop import HTML_FILE, SUMMARY_FILE, ClosedLoop
from loadtest.summary import Recorder, Summary

__all__: list[str] = []


def main() -> None:
    """Run what stdin asks for."""
    settings = ClosedLoop.model_validate_json(sys.stdin.read())
    folder = Path(sys.argv[1])
    summary, html = _run(settings)
    (folder / HTML_FILE).write_text(html, encoding="utf-8")
    (folder / SUMMARY_FILE).write_text(summary.model_dump_json(), encoding="utf-8")


def _run(settings: ClosedLoop) -> tuple[Summary, str]:
    environment = Environment(
        user_classes=[users.RecommendUser],
        events=events,
        host=settings.url,
        stop_timeout=settings.deadline_s,
        parsed_options=argparse.Namespace(
            domain=settings.domain, instructions=settings.instructions, k=settings.k, deadline=settings.deadline_s
        ),
    )
    # Locust rounds latencies to whole milliseconds: the SLA is judged on what was measured.
    recorder = Recorder()

    def note(response_time: float, response: Recommendations | None, exception: Exception | None, **_: object) -> None:
        if exception is not None or response is None:
            recorder.failed(f"{type(exception).__name__}: {exception}")
        else:
            recorder.answered(response_time, response.release)

    environment.events.request.add_listener(note)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    gevent.spawn(stats_history, runner)  # the report's charts
    start = time.perf_counter()
    runner.start(settings.users, spawn_rate=settings.spawn_rate)
    gevent.sleep(settings.duration_s)
    runner.stop()  # lets requests under way end
    summary = recorder.summary(time.perf_counter() - start)
    html = get_html_report(environment, show_download_link=False)  # type: ignore[no-untyped-call]
    runner.quit()
    return summary, html


if __name__ == "__main__":
    code = 1
    try:
        main()
        code = 0
    except Exception:  # noqa: BLE001 - shown, and the process ends with it
        traceback.print_exc()
    sys.stderr.flush()
    # A channel torn down while the interpreter exits can wait for ever for gevent, which is gone by then. All is
    # written and closed here, so nothing is left for an orderly exit to do.
    os._exit(code)
