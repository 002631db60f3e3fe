"""A release that is worse is kept back; a canary answers some of the people until their feedback decides."""

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import replace

from instructrec_client import AsyncCanarySplit, AsyncClient, CanarySplit, Client, Feedback, InstructRecError
from project import Project

from serving.canary.evidence import count_requests
from serving.embedded import Endpoints
from serving.live_repository import LiveRepository

PEOPLE = [f"person-{number}" for number in range(160)]
JUDGED = ("canary.min_people=40", "canary.error_margin=0.5", "canary.latency_ratio=50")


def journal(project: Project, name: str) -> list[dict]:
    return [json.loads(line) for line in (project.var / "journal" / name).read_text().splitlines()]


def keep_asking(project: Project, stop: threading.Event, seen: Counter[str]) -> None:
    with Client(project.grpc_url, timeout=30.0) as client, CanarySplit(client, refresh=0.3) as split:
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                seen[split.recommend("a blue shirt", user_id=PEOPLE[turn % len(PEOPLE)], k=3).release] += 1
            except InstructRecError as error:
                seen[f"failed: {error}"] += 1
            time.sleep(0.02)


def send_feedback(project: Project, clicks: dict[str, int], run: str) -> dict[str, set[str]]:
    """Everybody asks once and is shown ten items; of these, they click as many as the release deserves."""
    answered: dict[str, set[str]] = {}
    with Client(project.grpc_url, timeout=30.0) as client, CanarySplit(client) as split:
        events = []
        for number, name in enumerate(PEOPLE):
            person = f"{run}-{name}"
            release = split.recommend("a blue shirt", user_id=person, k=3).release
            answered.setdefault(release, set()).add(person)
            told = {"user_id": person, "release": release}
            events += [Feedback("impression", f"sku-{shown}", **told) for shown in range(10)]
            events += [Feedback("click", f"sku-{shown}", **told) for shown in range(clicks[release] + number % 2)]
        assert all(client.feedback_batch(events))
    return answered


def test_a_worse_release_goes_live_by_force_alone(own_two_releases: Project) -> None:
    project = replace(own_two_releases, settings=(*own_two_releases.settings, "gates.accuracy_margin=0.001"))
    project.make("deploy")
    worse = project.make("deploy", "RELEASE=1", check=False)
    assert worse.returncode != 0
    assert "release 1 did not pass the gate `task`: against release 2, top-1 label accuracy -" in worse.stderr
    assert "nothing was changed" in worse.stderr

    slow = replace(project, settings=(*own_two_releases.settings, "gates.latency_ratio=0.01"))
    refused = slow.make("deploy", "RELEASE=1", check=False)
    assert "gate `latency`: an answer takes" in refused.stderr
    assert "release 2 still answers" in refused.stderr
    with Client(project.grpc_url, timeout=30.0) as client:
        assert client.recommend("a blue shirt").release == "2"

    forced = project.make("deploy", "RELEASE=1", "FORCE=yes").stdout
    assert "FORCED past task" in forced
    assert "latency: passed" in forced
    assert journal(project, "ecommerce.jsonl")[-1]["forced"] == ["task"]
    assert "release 2 answers again" in project.make("rollback").stdout, "going back is never gated"


def test_a_canary_is_promoted_or_dropped_by_what_its_people_do(own_two_releases: Project) -> None:
    project = replace(own_two_releases, settings=(*own_two_releases.settings, *JUDGED))
    project.make("deploy", "RELEASE=1")
    stop, seen = threading.Event(), Counter[str]()
    caller = threading.Thread(target=keep_asking, args=(project, stop, seen))
    caller.start()
    try:
        assert "release 2 answers as ecommerce_canary" in project.make("canary", "SHARE=0.5").stdout
        early = project.make("canary-verdict", check=False)
        assert "feedback: needs more; 0 people" in early.stdout
        assert "stays the canary" in early.stdout
        answered = send_feedback(project, {"1": 1, "2": 6}, "first")
        assert min(map(len, answered.values())) > 50
        assert answered == asyncio.run(split_again(project, answered))
        promoted = project.make("canary-verdict").stdout
        assert "release 2 of ecommerce is promoted" in promoted, promoted
    finally:
        stop.set()
        caller.join()
    assert set(seen) == {"1", "2"}, seen
    assert LiveRepository(project.var / "live").ensembles() == ["ecommerce"], "the canary's ensemble is gone"
    assert journal(project, "ecommerce.jsonl")[-1]["verb"] == "canary"
    assert "feedback" in journal(project, "ecommerce.canary.jsonl")[-1]["reason"]

    project.make("canary", "RELEASE=1", "SHARE=0.5")
    project.make("stop")
    project.make("deploy", "RELEASE=2")
    status = project.make("status").stdout
    assert "release 2 answers" in status
    assert "release 1 is the canary, for 50 % of people, answers in" in status, "it is there again after a restart"
    assert "meant for 60 % of the people" in project.make("canary", "RELEASE=1", "SHARE=0.6").stdout
    endpoints = Endpoints(grpc_port=project.grpc_port, http_port=project.http_port, metrics_port=project.metrics_port)
    assert count_requests(endpoints, "ecommerce_canary", 1).answered == 1, "counted anew with the new share"
    with Client(project.grpc_url, timeout=30.0) as client, CanarySplit(client, share=1.0) as split:
        assert split.recommend("a blue shirt", user_id="anna").release == "1"
        send_feedback(project, {"2": 5, "1": 0}, "second")
        dropped = project.make("canary-verdict", check=False)
        assert "feedback: WORSE than allowed" in dropped.stdout
        assert "release 1 of ecommerce is dropped" in dropped.stdout
        # This client has not heard of it yet.
        assert split.recommend("a blue shirt", user_id="anna").release == "2"
        assert split.counts.fallback == 1
    assert "canary, dropped" in project.make("releases").stdout


async def split_again(project: Project, answered: dict[str, set[str]]) -> dict[str, set[str]]:
    """Another client, of another kind, decides the same of everybody."""
    found: dict[str, set[str]] = {}
    async with AsyncClient(project.grpc_url, timeout=30.0) as client, AsyncCanarySplit(client, shadow=True) as split:
        for person in sorted(set().union(*answered.values())):
            answer = await split.recommend("a blue shirt", user_id=person)
            found.setdefault(answer.release, set()).add(person)
        await asyncio.sleep(0.2)
        assert split.counts.shadow > 0
        assert split.counts.shadow_failed == 0
    return found
