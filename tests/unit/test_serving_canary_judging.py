"""A verdict compares what people asked of both since the same moment, and is acted on while it still holds."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canary_helpers import FULL, FakeTriton, Shop
from click.testing import CliRunner
from live_repository_helpers import ENCODER_KEPT, publish
from serving_helpers import build_release

from serving.canary import judging, lifecycle
from serving.canary.evidence import Requests
from serving.canary.journal import CanaryJournal
from serving.canary.judging import Judged, act, judge
from serving.canary.lifecycle import take_down
from serving.canary.verdict import Judgement, Outcome, Verdict, judge_errors
from serving.embedded import Endpoints
from serving.errors import PublishError, ServerError
from serving.gates.settings import CanarySettings
from serving.journal import Journal, Publication
from serving.layout import Layout
from serving.live_repository import LiveRepository
from serving.release_commands import releases
from serving.server import Server, ServerState

SETTINGS = CanarySettings(event=None)
HOUR = 3_600.0
EARLY, LATE = "2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"


def started(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    state = ServerState(pid=1, identity="running", started=at, endpoints=Endpoints())
    monkeypatch.setattr(Server, "state", lambda _: state)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    layout = Layout(tmp_path / "var")
    built = {number: build_release(layout.releases("shop"), number, steps) for number, steps in ENCODER_KEPT.items()}
    repository = LiveRepository(layout.live)
    publish(repository, built[1])
    Journal(layout.journal("shop")).append(Publication(at=EARLY, release=1, before=None, verb="deploy"))
    triton = FakeTriton(repository)
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", triton)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", triton.metrics)
    monkeypatch.setattr(lifecycle, "load_steps", lambda *_: None)
    monkeypatch.setattr(lifecycle, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(judging, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(judging, "ROUND_SECONDS", 0.0)
    started(monkeypatch, EARLY)
    return Shop(layout, triton, built)


def people_ask(shop: Shop, model: str, answered: int, failed: int) -> None:
    shop.triton.answered[model] += answered
    shop.triton.failed[model] += failed


def errors_of(judged: Judged) -> Judgement:
    return next(one for one in judged.verdict.judgements if one.of == "errors")


def test_probes_of_the_live_release_do_not_make_an_equal_canary_look_worse() -> None:
    """Two days, a request of people every five seconds, 3 % of which break the contract; the watcher probes as well."""
    live, canary = Requests(16_762, 518, 9.0), Requests(16_762, 518, 9.0)
    probed = replace(live, answered=live.answered + 86_000)
    assert judge_errors(probed, canary, SETTINGS).outcome is Outcome.DROP, "they do where nobody knows of them"
    said = judge_errors(replace(probed, own=86_401), canary, SETTINGS)
    assert said.outcome is not Outcome.DROP
    assert "up to 86,401 of them our own" in said.words
    worse = Requests(14_000, 3_280, 9.0)
    assert judge_errors(replace(probed, own=86_401), worse, SETTINGS).outcome is Outcome.DROP, "19 % are found"


def test_probes_promote_nobody_either() -> None:
    """Requests of ours that the canary answered must not hide what people's met."""
    live = Requests(20_000, 0, 9.0)
    hidden = Requests(20_100, 20, 9.0)
    assert judge_errors(live, hidden, SETTINGS).outcome is Outcome.PROMOTE
    assert judge_errors(live, replace(hidden, own=20_000), SETTINGS).outcome is Outcome.WAIT


def test_measurements_that_failed_are_nobodys_failures() -> None:
    live, canary = Requests(243, 0, 9.0), Requests(243, 44, 9.0)
    assert judge_errors(live, canary, SETTINGS).outcome is Outcome.DROP, "they are where nobody knows of them"
    said = judge_errors(live, replace(canary, own=43, own_failed=44), SETTINGS)
    assert said.outcome is Outcome.WAIT
    assert "44 of 287 requests (up to 87 of them our own) failed" in said.words


def test_both_are_counted_from_the_same_moment_and_ours_are_known(shop: Shop) -> None:
    people_ask(shop, "shop", 5_000_000, 200)  # weeks of it
    shop.put_up()
    shop.pass_time(HOUR)
    people_ask(shop, "shop", 970, 30)
    people_ask(shop, "shop_canary", 970, 30)
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    assert said.outcome is Outcome.WAIT
    assert said.words.startswith(
        "30 of 1,001 requests (up to 1 of them our own) failed, of the live release 30 of 1,000 requests (up to 970 of"
    )
    again = errors_of(judge(shop.layout, "shop", SETTINGS)).words
    assert again.startswith("30 of 1,044 requests (up to 44 of them our own)"), "the first verdict's are ours too"


def test_a_measurement_is_not_what_became_of_a_canary(shop: Shop) -> None:
    shop.put_up()
    judge(shop.layout, "shop", SETTINGS)
    listed = CliRunner().invoke(releases, ["--var", str(shop.layout.var), "--domain", "shop"]).output
    assert "canary, 10 %" in listed


@pytest.mark.parametrize("loaded", ["server", "live", "published", "unknown"])
def test_counts_that_began_anew_are_taken_as_they_are_and_the_verdict_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    people_ask(shop, "shop", 5_000, 0)
    shop.put_up()
    people_ask(shop, "shop_canary", 100, 0)
    note = "each is counted since its own"
    if loaded == "server":
        started(monkeypatch, LATE)
        note = "counted since the server was started"
    elif loaded == "live":
        shop.triton.load_model("shop")
    elif loaded == "published":
        Journal(shop.layout.journal("shop")).append(Publication(at=LATE, release=1, before=3, verb="rollback"))
    else:
        lifecycle.write_canary(shop.repository, replace(shop.canary, live_before=None), shop.releases[2])
    people_ask(shop, "shop", 2_000, 3)
    said = errors_of(judge(shop.layout, "shop", SETTINGS)).words
    assert note in said
    assert f"of the live release 3 of {2_003 if loaded == 'live' else 7_003:,} requests" in said


@pytest.mark.parametrize("fault", ["onnxruntime failed", FULL, "gone"])
def test_a_canary_that_answers_nobody_is_dropped(shop: Shop, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(judging, "PATIENCE_SECONDS", 0.0)
    shop.put_up()
    if fault == "gone":
        shop.triton.missing.add("shop_canary")  # a restarted server refused it
    shop.triton.faults["shop_canary"] = fault
    judged = judge(shop.layout, "shop", SETTINGS)
    assert judged.verdict.outcome is Outcome.DROP
    assert judged.verdict.reason().startswith("answers: it failed 10 of 10 requests")
    act(shop.layout, judged)
    assert shop.repository.ensembles() == ["shop"]


def test_errors_alone_drop_a_canary(shop: Shop) -> None:
    shop.put_up()
    people_ask(shop, "shop", 1_000, 0)
    people_ask(shop, "shop_canary", 0, 1_000)
    shop.releases[2].instructions.unlink()  # nothing to measure with
    judged = judge(shop.layout, "shop", SETTINGS)
    assert [(one.of, one.outcome) for one in judged.verdict.judgements] == [("errors", Outcome.DROP)]


def test_one_failure_or_a_full_queue_is_no_verdict(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put_up()
    shop.triton.faults = {"shop_canary": [FULL, FULL], "shop": [FULL]}
    latency = judge(shop.layout, "shop", SETTINGS).verdict.judgements[-1]
    assert "pairs of requests" in latency.words, "asked again until it was measured"
    shop.triton.faults = {"shop_canary": ["a stub died"]}
    latency = judge(shop.layout, "shop", SETTINGS).verdict.judgements[-1]
    assert latency.outcome is Outcome.WAIT
    assert latency.words.endswith("a stub died; it answers again")
    begun = datetime.datetime.fromisoformat(EARLY)
    journal = CanaryJournal(shop.layout.canary_journal("shop"))
    failures = [one.failures for one in journal.events() if one.failures]
    assert failures[-1] == 1 + judging.ROUNDS, "it is written down, for the next verdict not to take them for people's"
    assert journal.sent(shop.canary.release, begun)[1] == sum(failures)
    monkeypatch.setattr(judging, "PATIENCE_SECONDS", 0.0)
    shop.triton.faults = {"shop_canary": "the server is crushed", "shop": "as is this"}
    assert judge(shop.layout, "shop", SETTINGS).verdict.outcome is Outcome.WAIT


def test_requests_that_were_refused_because_too_many_waited_are_no_errors_of_a_step_of_its_own(shop: Shop) -> None:
    live, canary = ("shop_encoder", 1), ("shop_encoder", 3)
    shop.triton.refused[live], shop.triton.refused[canary] = 5_000, 40  # of an overload last week, and a shadow's
    people_ask(shop, "shop", 100_000, 5_010)
    shop.releases[2] = shop.releases[3]
    shop.put_up()
    people_ask(shop, "shop", 8_000, 2_000 + 5)
    people_ask(shop, "shop_canary", 700, 300 + 1)
    shop.triton.refused[live] += 2_000
    assert errors_of(judge(shop.layout, "shop", SETTINGS)).outcome is Outcome.DROP, "as far as anybody knows"
    shop.triton.refused[canary] += 300
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    assert said.outcome is not Outcome.DROP
    assert said.words.startswith("1 of 702 requests (up to 1 of them our own) failed, of the live release 5 of 8,0")
    assert said.words.endswith("; without 300 and 2,000 that were refused because too many waited")
    people_ask(shop, "shop_canary", 0, 200)
    assert errors_of(judge(shop.layout, "shop", SETTINGS)).outcome is Outcome.DROP, "what it fails with else is found"


UNKNOWN = "; those refused because too many waited are among them, how many is unknown"


def overload(shop: Shop) -> None:
    """Both releases begin with a step of their own, which has refused some before the canary came up and since."""
    live, canary = ("shop_encoder", 1), ("shop_encoder", 3)
    shop.triton.refused.update({live: 5_000, canary: 300})
    shop.releases[2] = shop.releases[3]
    shop.put_up()
    people_ask(shop, "shop", 8_000, 2_000)
    people_ask(shop, "shop_canary", 700, 300)
    shop.triton.refused.update({live: 2_000, canary: 300})


@pytest.mark.parametrize("moment", ["came up", "is judged"])
def test_counts_of_refusals_that_cannot_be_read_are_not_0(shop: Shop, moment: str) -> None:
    """All that was refused before would else be taken for new, and hide what the canary truly failed with."""
    shop.triton.hides_metrics = moment == "came up"
    overload(shop)
    shop.triton.hides_metrics = moment == "is judged"
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    assert said.outcome is Outcome.DROP
    assert said.words.startswith("300 of 1,001 requests")
    assert said.words.endswith(UNKNOWN)


@pytest.mark.parametrize("side", [("shop_encoder", 1), ("shop_encoder", 3)])
def test_a_first_step_that_does_not_count_its_refusals_has_an_unknown_number(shop: Shop, side: tuple[str, int]) -> None:
    """Of one release alone they are never left out: it would look better than the other for that."""
    overload(shop)
    del shop.triton.refused[side]
    assert errors_of(judge(shop.layout, "shop", SETTINGS)).words.endswith(UNKNOWN)


@pytest.mark.parametrize("side", [("shop_encoder", 1), ("shop_encoder", 3)])
def test_refusals_are_unknown_where_a_first_step_was_loaded_anew(shop: Shop, side: tuple[str, int]) -> None:
    overload(shop)
    shop.triton.refused[side] = 200
    assert errors_of(judge(shop.layout, "shop", SETTINGS)).words.endswith(UNKNOWN)


def test_more_refused_than_failed_is_no_count_of_the_same_requests(shop: Shop) -> None:
    overload(shop)
    shop.triton.load_model("shop_canary")  # with a step of it, and not the first
    people_ask(shop, "shop_canary", 90, 10)
    assert errors_of(judge(shop.layout, "shop", SETTINGS)).words.endswith(UNKNOWN)


def test_refusals_of_a_first_step_that_domains_share_stay_in(shop: Shop) -> None:
    steps = {"encoder": (1, "e4"), "topk": (4, "t4")}
    shop.releases[2] = build_release(shop.layout.releases("shop"), 4, steps, shared="other")
    shop.triton.refused.update({("shop_encoder", 1): 0, ("other_encoder", 1): 0})
    shop.put_up()
    people_ask(shop, "shop", 10_000, 0)
    people_ask(shop, "shop_canary", 700, 300)
    shop.triton.refused["other_encoder", 1] += 300  # the other domain's people
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    assert said.outcome is Outcome.DROP
    assert said.words.startswith("300 of 1,001 requests")


@pytest.mark.parametrize(
    ("domain", "first_step", "is_own"),
    [
        ("shop", "shop_tokenizer 12", True),
        ("shop", "shop_fused 1", True),
        ("shop", "tokenizer_4f1d00000000 1", False),
        ("shop", "shop_eu_tokenizer 1", False),
        ("tokenizer", "tokenizer_4f1d00000000 1", False),
        ("tokenizer", "tokenizer_fused 1", True),
    ],
)
def test_a_first_step_is_a_domains_own_by_its_name(domain: str, first_step: str, *, is_own: bool) -> None:
    assert Requests(0, 0, 0.0, first_step=first_step).begins_with_own_step(domain) is is_own


@pytest.mark.parametrize("is_published", [False, True])
def test_refusals_since_the_server_was_started_are_left_out_unless_the_live_release_is_younger(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, *, is_published: bool
) -> None:
    shop.releases[2] = shop.releases[3]
    shop.put_up()
    started(monkeypatch, LATE)
    if is_published:
        later = "2999-01-01T01:00:00+00:00"
        Journal(shop.layout.journal("shop")).append(Publication(at=later, release=1, before=3, verb="rollback"))
    people_ask(shop, "shop", 9_000, 1_000)
    people_ask(shop, "shop_canary", 700, 300)
    shop.triton.refused.update({("shop_encoder", 1): 9_000, ("shop_encoder", 3): 300})
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    if is_published:
        assert said.words.endswith("each is counted since its own")
        assert said.words.startswith("300 of ")
    else:
        assert said.words.startswith("0 of ")
        assert "; counted since the server was started; without 300 and 9,000 that were refused" in said.words


def test_of_a_first_step_that_both_begin_with_nobody_knows_whose_requests_it_refused(shop: Shop) -> None:
    shop.put_up()
    people_ask(shop, "shop", 8_000, 2_000)
    people_ask(shop, "shop_canary", 800, 200)
    shop.triton.refused["shop_encoder", 1] += 2_200
    said = errors_of(judge(shop.layout, "shop", SETTINGS))
    assert said.outcome is Outcome.WAIT
    assert said.words.startswith("200 of 1,001 requests")
    assert "without" not in said.words


def verdict(outcome: Outcome) -> Verdict:
    return Verdict((Judgement("errors", outcome, "planted"),))


@pytest.mark.parametrize("outcome", [Outcome.DROP, Outcome.PROMOTE])
@pytest.mark.parametrize("meanwhile", ["dropped", "another share", "published"])
def test_nothing_is_done_on_a_verdict_that_is_out_of_date(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, meanwhile: str
) -> None:
    shop.put_up()
    judged = Judged(shop.canary, 1, verdict(outcome))
    if meanwhile == "dropped":
        take_down(shop.layout, "shop")
    elif meanwhile == "another share":
        monkeypatch.setattr("serving.canary.ensemble.now", lambda: LATE)
        shop.put_up(0.5)
    else:
        publish(shop.repository, shop.releases[3])
    before = [path.read_bytes() for path in sorted(shop.layout.live.rglob("config.pbtxt"))]
    with pytest.raises(PublishError, match="has changed since they were judged: nothing was done"):
        act(shop.layout, judged)
    assert [path.read_bytes() for path in sorted(shop.layout.live.rglob("config.pbtxt"))] == before
    assert CanaryJournal(shop.layout.canary_journal("shop")).events()[-1].action in {"taken down", "share", "up"}


def test_what_was_judged_is_looked_at_under_the_lock(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put_up()

    def held(*_: Any) -> None:
        with pytest.raises(ServerError, match="is at work"), Server(shop.layout).lock():
            pass
        raise PublishError("seen")

    monkeypatch.setattr(judging, "_check_unchanged", held)
    for outcome in (Outcome.DROP, Outcome.PROMOTE):
        with pytest.raises(PublishError, match="seen"):
            act(shop.layout, Judged(shop.canary, 1, verdict(outcome)))


def test_a_changed_share_begins_the_evidence_anew_and_the_same_share_does_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    people_ask(shop, "shop", 50, 1)
    shop.put_up()
    first = shop.canary
    assert first.live_before == Requests(50, 1, 5.0, first_step="shop_encoder 1")
    people_ask(shop, "shop", 20, 2)
    monkeypatch.setattr("serving.canary.ensemble.now", lambda: LATE)
    shop.put_up()
    assert shop.canary == first
    shop.put_up(0.5)
    assert shop.canary == replace(
        first, share=0.5, since=LATE, live_before=Requests(70, 3, 5.0, first_step="shop_encoder 1")
    )


def test_a_busy_server_is_asked_again_for_a_canarys_first_answer(shop: Shop) -> None:
    shop.triton.faults["shop_canary"] = [FULL, FULL]
    assert shop.put_up().answer.release == "2"
    shop.triton.faults["shop_canary"] = [FULL, FULL]
    assert shop.put_up(0.5).canary.share == 0.5


def test_a_share_that_cannot_be_changed_stays(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put_up()
    first = shop.canary
    people_ask(shop, "shop", 20, 0)
    monkeypatch.setattr(lifecycle, "PATIENCE_SECONDS", 0.0)
    for fault in (FULL, "onnxruntime failed"):
        shop.triton.faults["shop_canary"] = fault
        with pytest.raises(ServerError, match=fault):
            shop.put_up(0.5)
        assert shop.canary == replace(first, live_before=Requests(20, 0, 5.0, first_step="shop_encoder 1")), (
            "its own counts begin anew, so both do"
        )
