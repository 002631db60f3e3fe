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
from gevent.event import Event
from instructrec_client import Recommendations
from locust import events
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from loadtest.closed_loop import HTML_FILE, SUMMARY_FILE, ClosedLoop
from loadtest.summary import Recorder, Summary

__all__: list[str] = []

SLOW_START_S = 30.0
"""Seconds that the users may take to start beyond what was asked for."""


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
        reset_stats=True,  # Locust's own report, too, begins when all users have started
    )
    all_started = Event()
    environment.events.spawning_complete.add_listener(lambda **_: all_started.set())  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    gevent.spawn(stats_history, runner)  # the report's charts
    runner.start(settings.users, spawn_rate=settings.spawn_rate)
    limit = settings.ramp_up_s + SLOW_START_S
    if not all_started.wait(limit):
        raise RuntimeError(f"{runner.user_count} of {settings.users} users started within {limit:g} s: ask for fewer")

    # Locust rounds latencies to whole milliseconds: the SLA is judged on what was measured.
    recorder = Recorder()
    start = time.perf_counter()

    def note(response_time: float, response: Recommendations | None, exception: Exception | None, **_: object) -> None:
        if time.perf_counter() - response_time / 1000 < start:
            return  # sent while users were missing
        if exception is not None or response is None:
            recorder.failed(f"{type(exception).__name__}: {exception}")
        else:
            recorder.answered(response_time, response.release)

    environment.events.request.add_listener(note)  # type: ignore[no-untyped-call]
    gevent.sleep(settings.duration_s)
    users_left = runner.user_count
    runner.stop()  # lets requests under way end
    summary = recorder.summary(time.perf_counter() - start)
    if users_left < settings.users:
        reasons = [error["msg"] for error in runner.exceptions.values()]
        raise RuntimeError(f"only {users_left} of {settings.users} users could ask: {' '.join(reasons)}")
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
