"""Runs that are made of another run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_helpers import HIDDEN_SIZE, items_of, made_run, vectors_of

from training.config_loading import load_config
from training.dataset import Instruction
from training.derived_run import derive_run
from training.errors import RunError
from training.plan import existing_run, make_plan
from training.run import Run
from training.run_listing import derived_from, newest_run, root_of


@pytest.fixture
def parent(tmp_path: Path, tiny_config: Path) -> Run:
    return made_run(tiny_config, tmp_path / "var", items_of("one", "two", "three"))


def another_head(run: Run) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = run.head()
    return weight + 1, bias - 1


def same_file(one: Path, other: Path) -> bool:
    return one.stat().st_ino == other.stat().st_ino


def test_a_new_head_leaves_all_else_as_it_was(parent: Run, tmp_path: Path) -> None:
    weights = parent.score_weights.model_copy(update={"beta": 7.0})
    run = derive_run(
        parent,
        tmp_path / "var",
        reason="feedback",
        head=another_head(parent),
        score_weights=weights,
        metrics={"weak_labels": True},
        details={"events": 200},
    )
    assert run.path.parent == parent.path.parent
    assert run.manifest.derived_from is not None
    assert run.manifest.derived_from.model_dump() == {
        "run_id": parent.run_id,
        "reason": "feedback",
        "details": {"events": 200},
        "root": parent.run_id,
    }
    assert root_of(run) == root_of(parent) == parent.run_id
    np.testing.assert_array_equal(run.head()[0], parent.head()[0] + 1)
    assert run.score_weights.beta == 7.0
    assert run.manifest.metrics == json.loads((run.path / "metrics.json").read_text()) == {"weak_labels": True}
    assert "Not measured" in (run.path / "classification_report.txt").read_text(encoding="utf-8")
    assert run.catalogue() == parent.catalogue()
    unchanged = {"catalogue.jsonl", "item_vectors.safetensors", "labels.json", "config.yaml", "encoder/tokenizer.json"}
    assert {name for name in unchanged if same_file(run.path / name, parent.path / name)} == unchanged
    assert not same_file(run.path / "head.safetensors", parent.path / "head.safetensors")
    assert Run.open(parent.path).score_weights.beta == 1.0


def test_a_disk_that_cannot_link_gets_copies(parent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    run = derive_run(parent, tmp_path / "elsewhere", reason="feedback", head=another_head(parent))
    assert run.path.is_relative_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(run.item_vectors(), parent.item_vectors())
    assert not same_file(run.path / "catalogue.jsonl", parent.path / "catalogue.jsonl")


def test_a_new_catalogue_may_have_more_and_fewer_items(parent: Run, tmp_path: Path) -> None:
    items = items_of("three", "four")
    run = derive_run(parent, tmp_path / "var", reason="catalogue", catalogue=items, item_vectors=vectors_of(["x", "y"]))
    assert [item.item_id for item in run.catalogue()] == ["id-three", "id-four"]
    np.testing.assert_array_equal(run.item_vectors(), vectors_of(["x", "y"]))
    assert same_file(run.path / "head.safetensors", parent.path / "head.safetensors")


def test_a_derived_run_is_neither_taken_for_the_trained_one_nor_lost(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    plan = make_plan(load_config(tiny_config), tiny_data, tmp_path / "var")
    made = made_run(tiny_config, tmp_path / "var", items_of("one"))
    manifest = made.manifest.model_copy(update={"fingerprint": plan.fingerprint})
    (made.path / "run.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    trained = Run.open(made.path)
    first = derive_run(trained, tmp_path / "var", reason="feedback", head=another_head(trained))
    second = derive_run(first, tmp_path / "var", reason="feedback", head=another_head(first))
    found = existing_run(plan)
    assert found is not None
    assert found.run_id == trained.run_id
    assert [run.run_id for run in derived_from(trained, plan.runs)] == [second.run_id, first.run_id]
    assert [run.run_id for run in derived_from(first, plan.runs)] == [second.run_id]
    assert derived_from(second, plan.runs) == []
    assert len({run.manifest.fingerprint for run in (trained, first, second)}) == 3


def test_a_run_without_the_field_opens(parent: Run) -> None:
    tree = json.loads((parent.path / "run.json").read_text(encoding="utf-8"))
    del tree["derived_from"]
    (parent.path / "run.json").write_text(json.dumps(tree), encoding="utf-8")
    assert Run.open(parent.path).manifest.derived_from is None


@pytest.mark.parametrize("flushes", [0, 5])
def test_a_killed_derivation_leaves_no_run(parent: Run, tmp_path: Path, flushes: int) -> None:
    script = f"""
import os, signal
from pathlib import Path
import training.atomic
from training.derived_run import derive_run
from training.run import Run
run, flush, left = Run.open({str(parent.path)!r}), training.atomic._flush, [{flushes}]
def killed(path):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    flush(path)
training.atomic._flush = killed
weight, bias = run.head()
derive_run(run, Path({str(tmp_path / "var")!r}), reason="feedback", head=(weight + 1, bias))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    found = newest_run(parent.path.parent)
    assert found is not None
    assert found.run_id == parent.run_id
    again = derive_run(parent, tmp_path / "var", reason="feedback", head=another_head(parent))
    assert sorted(path.name for path in parent.path.parent.iterdir()) == sorted([parent.run_id, again.run_id])


def test_a_full_disk_is_one_line_and_leaves_nothing(
    parent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.derived_run.link_or_copy", full)
    with pytest.raises(RunError, match="No space left on device"):
        derive_run(parent, tmp_path / "var", reason="feedback", head=another_head(parent))
    assert [path.name for path in parent.path.parent.iterdir()] == [parent.run_id]


def test_what_does_not_fit_is_refused(parent: Run, tmp_path: Path) -> None:
    three, vectors = items_of("a", "b", "c"), vectors_of(["a", "b", "c"])
    weight, bias = parent.head()
    asked = Instruction("ask", "a hat", "Hats", {}, {}, "train")
    wrong = {
        "does not fit": {"head": (weight[:, :3], bias)},
        "not finite": {"head": (weight * np.nan, bias)},
        "needs new item vectors": {"catalogue": three},
        "no item": {"catalogue": [], "item_vectors": vectors[:0]},
        "3 items need finite vectors": {"catalogue": three, "item_vectors": vectors[:2]},
        "reads histories by the item vectors": {
            "catalogue": three,
            "item_vectors": vectors,
            "history_vectors": vectors,
        },
        "an item id twice": {"catalogue": [*three[:2], three[0]], "item_vectors": vectors},
        "item 'id-c' has the label 'Hats'": {
            "catalogue": [*three[:2], replace(three[2], label="Hats")],
            "item_vectors": vectors,
        },
        "instruction 'ask' has the label 'Hats'": {"instructions": [asked]},
        "another encoder needs another head and other item vectors": {
            "encoder": parent.encoder,
            "head": (weight, bias),
        },
        "nothing is given": {"score_weights": parent.score_weights},
    }
    for message, given in wrong.items():
        with pytest.raises(RunError, match=message):
            derive_run(parent, tmp_path / "var", reason="test", **given)
    assert [path.name for path in parent.path.parent.iterdir()] == [parent.run_id]


def test_histories_by_behaviour_need_vectors_of_the_new_items(tmp_path: Path, tiny_config: Path) -> None:
    parent = made_run(tiny_config, tmp_path / "var", items_of("one", "two"), vectors="behaviour")
    items, vectors = items_of("one"), vectors_of(["one"])
    with pytest.raises(RunError, match="needs one history vector for each item"):
        derive_run(parent, tmp_path / "var", reason="catalogue", catalogue=items, item_vectors=vectors)
    behaviour = np.ones((1, 4), np.float32)
    run = derive_run(
        parent,
        tmp_path / "var",
        reason="catalogue",
        catalogue=items,
        item_vectors=vectors,
        history_vectors=behaviour,
    )
    np.testing.assert_array_equal(run.history_vectors(), behaviour)
    assert run.item_vectors().shape == (1, HIDDEN_SIZE)
