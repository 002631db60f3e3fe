"""The evaluation report end to end on a tiny run, and on runs that lack what it measures."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from training.atomic import new_folder
from training.cli import main
from training.config_loading import load_config
from training.derived_run import derive_run
from training.errors import TrainingError
from training.evaluation.coverage import popularity
from training.evaluation.inputs import Settings, read_inputs
from training.evaluation.markdown import render
from training.evaluation.measure import describe_run, measure_run
from training.evaluation.plots import draw_plots
from training.evaluation.report import evaluate_run
from training.plan import make_plan
from training.run import Run
from training.train import train_run

QUICK = Settings(seed=0, resamples=50, draws=2, shots=(1, 2))
PLOTS = {"label_task.png", "confusion.png", "ranking.png", "calibration.png", "robustness.png", "learning_curve.png"}


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def train(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Run]:
    def make(*overrides: str) -> Run:
        plan = make_plan(load_config(tiny_config, ["training.epochs=20", *overrides]), tiny_data, tmp_path / "var")
        return train_run(plan, lambda _: None)

    return make


def rewrite(run: Run, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change, or leave out, each row of a file of the run."""
    path = run.path / name
    rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row is not None]
    path.write_text("".join(kept), encoding="utf-8")


def test_the_report_is_complete_consistent_and_repeats_itself(
    train: Callable[..., Run], tiny_data: Path, tmp_path: Path
) -> None:
    run = train()
    folder, tree = evaluate_run(run, tiny_data, tmp_path / "var", QUICK)
    assert folder == tmp_path / "var/evaluation/shop" / run.run_id
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.json", *PLOTS}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in PLOTS)
    metrics = run.manifest.metrics["test"]
    for section, systems in (("label_task", "labels"), ("ranking", "ranking")):
        measured = tree[section]["splits"]["test"]["systems"]["tuned"]
        for name, value in metrics[systems].items():
            assert measured[name]["value"] == pytest.approx(value, abs=1e-4)
            assert measured[name]["low"] <= measured[name]["value"] <= measured[name]["high"]
    zero_shot = tree["ranking"]["splits"]["test"]["systems"]["zero_shot"]
    assert zero_shot["ndcg@10"]["value"] == pytest.approx(metrics["ranking_zero_shot"]["ndcg@10"], abs=1e-4)
    assert tree["coverage"]["popularity"]["source"] == "the catalogue's prior"
    assert tree["learning_curve"]["frozen"]
    assert [point["shots"] for point in tree["learning_curve"]["curves"]["base"]] == [1, 2, None]
    all_of_it = tree["learning_curve"]["curves"]["base"][-1]["mean"]
    regression = tree["label_task"]["splits"]["test"]["systems"]["logistic_regression"]["top1_accuracy"]["value"]
    assert all_of_it == regression
    again = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    repeated = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    again.pop("timings")
    repeated.pop("timings")
    assert again == repeated


def test_the_command_trains_first_and_says_weak(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    common = ("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
    overrides = ("training.epochs=5", "sources.main.instructions.weak_labels=true")
    first = invoke("evaluate", *common, *overrides)
    assert first.exit_code == 0, first.output
    assert "weak labels" in first.output
    report = Path(first.output.strip().rpartition("report: ")[2])
    text = report.read_text(encoding="utf-8")
    assert "**The labels are weak**" in text
    assert "## Labels (weak labels)" in text
    (run,) = (tmp_path / "var/runs/shop").iterdir()
    again = invoke("evaluate", *common, "--run", run)
    assert again.exit_code == 0, again.output
    assert len(list((tmp_path / "var/runs/shop").iterdir())) == 1
    missing = invoke("evaluate", *common, "--run", tmp_path)
    assert missing.output.startswith("Error: ")
    assert missing.output.count("\n") == 1
    meant_for_export = "export.calibration_texts=64"
    assert invoke("evaluate", *common, "--run", run, meant_for_export).exit_code == 0
    changed = invoke("evaluate", *common, "--run", run, meant_for_export, "training.seed=5")
    assert changed.exit_code == 1
    assert changed.output.startswith("Error: training.seed=5: changes nothing of a run that is finished")
    assert changed.output.count("\n") == 1
    music = tiny_config.with_name("music.yaml")
    music.write_text(tiny_config.read_text(encoding="utf-8").replace("domain: shop", "domain: music"))
    other = invoke("evaluate", "--config", music, *common[2:], "--run", run)
    assert other.exit_code == 1
    assert "a run of shop, the config is of music" in other.output


def test_a_tuned_encoder_stands_beside_its_base(train: Callable[..., Run], tiny_data: Path, tmp_path: Path) -> None:
    run = train("encoder_tuning.method=full", "encoder_tuning.epochs=1", "encoder_tuning.learning_rate=0.02")
    tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    assert set(tree["learning_curve"]["curves"]) == {"base", "tuned"}
    text = render(tree, {})
    assert "tuned with full" in text
    assert "has seen all training instructions" in text


def test_a_distilled_encoder_is_not_called_frozen(train: Callable[..., Run], tiny_data: Path, tmp_path: Path) -> None:
    teacher = train()
    run = train(f"distillation.teacher={teacher.path}", "distillation.layers=[1]", "distillation.epochs=1")
    tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    assert tree["run"]["encoder_method"] == "distilled"
    assert tree["run"]["distillation"] == {"teacher": teacher.run_id, "teacher_layers": 2, "layers": [1]}
    text = render(tree, {})
    assert f", distilled from {teacher.run_id}, layers 1 of its 2 (from 0) |" in text
    assert "| distilled encoder |" in text
    assert "tuned encoder" not in text

    def described(other: Run) -> str:
        return render({**tree, **describe_run(read_inputs(other, tmp_path / "var", QUICK))}, {})

    assert ", frozen |" in described(teacher)
    # A run made of it without training afresh has its config, and metrics of its own.
    metrics = run.manifest.metrics
    for own, said in (
        ({}, f", distilled from {teacher.run_id} |"),
        ({"encoder_tuning": {"method": "lora"}}, f", distilled from {teacher.run_id}, then tuned with lora |"),
    ):
        kept = {name: value for name, value in metrics.items() if name != "distillation"} | own
        derived = derive_run(run, tmp_path / "var", reason="test", metrics=kept)
        assert said in described(derived)


def test_without_training_instructions_no_baseline_learns_what_the_test_says(
    train: Callable[..., Run], tiny_data: Path, tmp_path: Path
) -> None:
    run = train("training.shots=0")
    tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    titles = len(run.catalogue())
    assert tree["label_task"]["taught_by"].startswith(f"{titles} item titles")
    title = run.catalogue()[3].title.title()  # as an item may be called, in other letters
    assert title != title.lower()
    rewrite(run, "instructions.jsonl", lambda row: {**row, "text": title} if row["split"] == "test" else row)
    tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    said = sum(item.title.lower() == title.lower() for item in run.catalogue())
    assert tree["label_task"]["taught_by"].startswith(f"{titles - said} item titles")


def only(*splits: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    return lambda row: row if row["split"] in splits else None


def one(split: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    seen: list[str] = []

    def keep(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["split"] != split or seen:
            return None
        seen.append(row["instruction_id"])
        return row

    return keep


HELD_OUT_SECTIONS = {"label_task", "labels", "ranking", "calibration", "robustness", "coverage"}
ABSENCES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any] | None], set[str]]] = {
    "nothing": (lambda row: None, HELD_OUT_SECTIONS | {"learning_curve"}),
    "no held-out split": (only("train"), HELD_OUT_SECTIONS | {"learning_curve"}),
    "no test split": (only("train", "validation"), set()),
    "one instruction": (one("test"), {"learning_curve"}),
    "one label asked for": (lambda row: row if row["split"] != "test" or row["label"] == "Hats" else None, set()),
    "one label taught": (
        lambda row: row if row["split"] != "train" or row["label"] == "Hats" else None,
        {"learning_curve"},
    ),
    "no attributes and no words": (lambda row: {**row, "text": "?!", "attributes": {}}, set()),
}


RESCALED = {"one label asked for", "one label taught", "no attributes and no words"}


def test_what_is_absent_is_left_out(train: Callable[..., Run], tiny_data: Path, tmp_path: Path) -> None:
    run = train()  # once for all: only its instructions differ from case to case
    whole = (run.path / "instructions.jsonl").read_bytes()
    for case, (change, absent) in ABSENCES.items():
        (run.path / "instructions.jsonl").write_bytes(whole)
        rewrite(run, "instructions.jsonl", change)
        tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
        missing = {section for section in HELD_OUT_SECTIONS | {"learning_curve"} if tree[section] is None}
        assert missing == absent, case
        assert render(tree, {}).startswith("# shop: evaluation of run"), case
        assert bool((tree["calibration"] or {}).get("rescaled")) == (case in RESCALED), case
        assert ("no test split to judge the best temperature on" in render(tree, {})) == (case == "no test split")
        if case in {"nothing", "one instruction"}:
            drawn = draw_plots(tree, tmp_path)
            assert ("ranking" in drawn) == ("ranking" not in absent), case


def test_labels_in_any_script_and_with_any_sign_are_drawn(
    train: Callable[..., Run], tiny_data: Path, tmp_path: Path
) -> None:
    run = train()
    names = {"Bags": "袋子 | 包", "Hats": "$x_{1", "Shirts": "قمصان <b>", "Shoes": "обувь " * 20}
    for name in ("catalogue.jsonl", "instructions.jsonl"):
        rewrite(run, name, lambda row: {**row, "label": names[row["label"]], "text": f"日本語 {row['text']} 🎉"})
    labels = [names[label] for label in run.labels]
    (run.path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folder, _ = evaluate_run(Run.open(run.path), tiny_data, tmp_path / "var", QUICK)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "袋子 \\| 包" in text
    assert "<b>" not in text


def test_two_labels_and_popularity_from_interactions(
    train: Callable[..., Run], tiny_data: Path, tmp_path: Path
) -> None:
    shop = tiny_data / "shop"
    for name, kept in (("items.csv", ("Shirts", "Shoes")), ("asks.csv", ("Shirts", "Shoes"))):
        header, *lines = (shop / name).read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if any(label in line for label in kept)]
        (shop / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    run = train(
        "sources.main.catalogue.prior=null", "sources.main.interactions.unknown_items=ignore", "encoder.max_length=24"
    )
    assert len(run.labels) == 2
    tree = measure_run(run, tiny_data, tmp_path / "var", QUICK)
    assert tree["label_task"]["splits"]["test"]["systems"]["tfidf_svm"]["top1_accuracy"]["value"] == 1
    assert tree["coverage"]["popularity"]["source"] == "interactions an item"
    (shop / "events.csv").write_text("user,item,value,time\n", encoding="utf-8")
    inputs = read_inputs(run, tmp_path / "var", QUICK)
    assert popularity(inputs, tiny_data) is None  # another dataset's popularity is not the run's


def test_a_report_replaces_the_older_one_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(domain="shop", run_id="1")
    monkeypatch.setattr("training.evaluation.report.measure_run", lambda *_: {"number": next(numbers)})
    monkeypatch.setattr("training.evaluation.report.draw_plots", lambda *_: {})
    monkeypatch.setattr("training.evaluation.report.render", lambda *_: "text")
    numbers = iter(range(3))
    for number in range(2):
        folder, _ = evaluate_run(run, tmp_path, tmp_path, QUICK)
        assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == {"number": number}

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.evaluation.report.render", full)
    with pytest.raises(TrainingError, match="cannot be written"):
        evaluate_run(run, tmp_path, tmp_path, QUICK)
    assert [path.name for path in folder.parent.iterdir()] == ["1"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == {"number": 1}


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.rename"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_the_older_report_outlives_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    run: Any = SimpleNamespace(domain="shop", run_id="1")
    monkeypatch.setattr("training.evaluation.report.measure_run", lambda *_: {})
    monkeypatch.setattr("training.evaluation.report.draw_plots", lambda *_: {})
    monkeypatch.setattr("training.evaluation.report.render", lambda *_: "older")
    folder, _ = evaluate_run(run, tmp_path, tmp_path, QUICK)
    monkeypatch.setattr("training.evaluation.report.render", lambda *_: "newer")
    rename = Path.rename

    def fail(*arguments: Any) -> Any:
        [source, *target] = arguments
        if target and (source / "report.md").read_text(encoding="utf-8") != "newer":
            return rename(source, *target)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises((TrainingError, KeyboardInterrupt)):
            evaluate_run(run, tmp_path, tmp_path, QUICK)
    with new_folder(folder.with_name("2")):  # what was left behind goes with the next folder
        pass
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1", "2"]
    assert (folder / "report.md").read_text(encoding="utf-8") == "older"
