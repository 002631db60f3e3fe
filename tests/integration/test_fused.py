"""A domain served in one step answers as in four, bad neighbours included, and goes live as any release."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from project import Project, copy_of
from wire import Answer, request, send_together

from serving.admin import admin_client
from serving.layout import Layout


def requests_of(release: Path) -> list[dict[str, np.ndarray]]:
    """The release's own instructions with their histories, of several k and rows, and what no caller should send."""
    rows = [json.loads(line) for line in (release / "instructions.jsonl").read_text().splitlines()]
    made = [
        request([row["text"].encode()], history=[[item.encode() for item in row["history"]]], k=1 + 13 * number % 100)
        for number, row in enumerate(rows)
    ]
    texts = [row["text"].encode() for row in rows]
    made += [request(texts[start : start + 5], k=4) for start in range(0, 50, 5)]
    made.append(request([b"blue shirt " * 1_000], history=[[b"no such item", b""]]))
    bad = [request([b" "]), request([b"\xff"]), request(texts[:1], k=0), request([b"x" * 20_000])]
    for place, one in enumerate(bad * 5):
        made.insert(7 * place, one)
    return made


def same(fused: Answer, ensemble: Answer) -> None:
    if ensemble.error:
        assert (fused.status, fused.error.message()) == (ensemble.status, ensemble.error.message())
        return
    assert fused.error is None, fused.error
    score, reason = ensemble.result.as_numpy("score"), ensemble.result.as_numpy("reason")
    rounding = 1e-5 * max(1.0, float(np.abs(reason).max()))  # a score is no more exact than its largest term
    np.testing.assert_allclose(fused.result.as_numpy("score"), score, rtol=0, atol=rounding)
    for name in ("item_id", "title", "label"):
        one, other = fused.result.as_numpy(name), ensemble.result.as_numpy(name)
        for row, column in np.argwhere(one != other):
            # Two items whose scores differ by less than rounding may change places.
            assert np.abs(np.delete(score[row], column) - score[row, column]).min(initial=1) < rounding, name
    assert fused.result.as_numpy("reason").shape == reason.shape


@pytest.fixture(scope="module")
def both_ways(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, list[Answer]]]:
    """A server that has switched from four steps to one, and what it answered in four."""
    project = copy_of(small, tmp_path_factory.mktemp("fused") / "var")
    project.make("deploy")
    try:
        sent = requests_of(project.var / "releases/ecommerce/1")
        in_steps = send_together(project.grpc_url, "ecommerce", sent)
        project.make("export", "PRECISION=fp32", "SERVING=fused")
        assert "published to the running server" in project.make("deploy").stdout
        yield project, in_steps
    finally:
        project.make("stop", check=False)


def test_fused_answers_as_the_ensemble(both_ways: tuple[Project, list[Answer]]) -> None:
    project, in_steps = both_ways
    sent = requests_of(project.var / "releases/ecommerce/1")
    fused = send_together(project.grpc_url, "ecommerce", sent)
    assert {answer.status for answer in fused} == {"OK", "INVALID_ARGUMENT"}
    for one, other in zip(fused, in_steps, strict=True):
        same(one, other)
        if one.error is None:
            assert set(one.result.as_numpy("release").reshape(-1)) == {b"2"}


def test_rolling_back_to_four_steps_and_forward(both_ways: tuple[Project, list[Answer]]) -> None:
    """The release before is one step away, its models still loaded, whichever way it was served."""
    project, in_steps = both_ways
    with admin_client(Layout(project.var), project.grpc_url) as client:
        models = client.get_model_repository_index().models
    steps = {f"ecommerce_{step}" for step in ("tokenizer", "encoder", "head", "topk", "fused")}
    assert {model.name for model in models if model.state == "READY"} == {"ecommerce", "feedback", *steps}
    sent = requests_of(project.var / "releases/ecommerce/1")[:20]
    for release in ("1", "2"):
        assert "published to the running server" in project.make("deploy", f"RELEASE={release}").stdout
        for one, other in zip(send_together(project.grpc_url, "ecommerce", sent), in_steps, strict=False):
            same(one, other)
