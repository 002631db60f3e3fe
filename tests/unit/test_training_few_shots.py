"""Few shots and transfer: what a draw keeps, what a start from another run takes over, and the study of both."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from training.cli import main
from training.config_loading import load_config
from training.dataset import Dataset, Instruction
from training.dataset_loading import load_dataset
from training.encoder_source import weights_sha256
from training.errors import ConfigError, RunError
from training.plan import make_plan
from training.run import Run
from training.run_encoder import named_run
from training.shots import STAND_INS, draw_shots, limit_shots

TUNED = ("encoder_tuning.method=full", "encoder_tuning.epochs=1", "encoder_tuning.batch_size=16")


@pytest.fixture
def invoke(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Any:
    def call(command: str, *arguments: object) -> Result:
        common = (command, "--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
        return CliRunner().invoke(main, [str(argument) for argument in (*common, *arguments)])

    return call


@pytest.fixture
def limited(tiny_config: Path, tiny_data: Path) -> Any:
    def call(*overrides: str) -> tuple[Dataset, Any]:
        config = load_config(tiny_config, overrides)
        return limit_shots(load_dataset(config, tiny_data), config)

    return call


def finished(result: Result) -> Run:
    assert result.exit_code == 0, result.output
    return Run.open(result.output.strip().rpartition("run: ")[2])


def ids(instructions: list[Instruction]) -> frozenset[str]:
    return frozenset(one.instruction_id for one in instructions)


# --- draws ----------------------------------------------------------------------------------------------------------


def test_a_draw_keeps_so_many_a_label_and_leaves_the_test_split(limited: Any) -> None:
    whole, nothing = limited()
    assert nothing is None
    cut, record = limited("training.shots=2")
    for split in ("train", "validation"):
        assert Counter(one.label for one in cut.split(split)) == dict.fromkeys(whole.labels, 2)
        assert ids(cut.split(split)) < ids(whole.split(split))
    assert cut.split("test") == whole.split("test")
    assert str(record) == "instructions train 8 of 16, validation 8 of 16 (2 a label)"
    assert limited("training.shots=99")[0] == whole


def test_draws_nest_differ_by_seed_and_do_not_depend_on_the_order(limited: Any) -> None:
    train = limited()[0].split("train")
    two, three = ids(draw_shots(train, 2, 0)), ids(draw_shots(train, 3, 0))
    assert two < three
    assert ids(draw_shots(train[::-1], 2, 0)) == two
    assert len({ids(draw_shots(train, 2, seed)) for seed in range(5)}) > 1
    drawn = ids(limited("training.shots=2", "training.seed=3")[0].split("train"))
    assert drawn == ids(draw_shots(train, 2, 3))


def test_without_shots_titles_of_items_that_are_not_taught_stand_in(limited: Any) -> None:
    cut, record = limited("training.shots=0", "training.items_per_label=3")
    assert cut.split("train") == []
    assert len(cut.split("test")) == 16
    stand_ins = cut.split("validation")
    assert len(stand_ins) == record.stand_ins == 4 * 5  # each label has 8 items, 3 of them taught
    titles = {item.title: item for item in cut.items}
    for one in stand_ins:
        item = titles[one.text]
        assert (one.label, dict(one.attributes)) == (item.label, {"colour": item.attributes["colour"]})
    assert "item titles stand in" in cut.notes[-1]
    whole_catalogue = limited("training.shots=0", "training.items_per_label=99")[0]
    assert 0 < len(whole_catalogue.split("validation")) <= len(whole_catalogue.items)
    assert STAND_INS >= 5


def test_labels_of_left_out_instructions_are_nowhere(
    limited: Any, invoke: Any, tiny_data: Path, tmp_path: Path
) -> None:
    asks = tiny_data / "shop/asks.csv"
    asks.write_text(
        asks.read_text(encoding="utf-8") + "ask-90,play a song,Songs,,,train\nask-91,a song,Songs,,,validation\n",
        encoding="utf-8",
    )
    keep = "sources.main.instructions.labels_without_items=keep"
    assert "Songs" in limited(keep)[0].labels
    run = finished(invoke("train", "training.shots=0", keep))
    assert "Songs" not in run.labels
    assert "song" not in "".join(path.read_text(encoding="utf-8") for path in run.path.glob("*.json*"))
    assert {one.split for one in run.instructions()} == {"validation", "test"}


@pytest.mark.parametrize("shots", [0, 1])
def test_a_run_of_few_shots_says_so_and_repeats_itself(invoke: Any, shots: int, tmp_path: Path) -> None:
    result = invoke("train", f"training.shots={shots}", *TUNED)
    run = finished(result)
    metrics = run.manifest.metrics
    assert f"instructions train {4 * shots} of 16, validation {4 * shots} of 16 ({shots} a label)" in result.output
    assert metrics["shots"]["train"] == 4 * shots
    assert metrics["test"]["instructions"] == 16
    assert ("item titles" in result.output) == (shots == 0)
    head = (run.path / "head.safetensors").read_bytes()
    shutil.rmtree(run.path)
    assert (finished(invoke("train", f"training.shots={shots}", *TUNED)).path / "head.safetensors").read_bytes() == head


def test_shots_are_in_the_fingerprint_only_where_they_are_set(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def fingerprint(*overrides: str) -> str:
        return make_plan(load_config(tiny_config, overrides), tiny_data, tmp_path).fingerprint

    assert fingerprint() == fingerprint("training.shots=null", "init_from=null")
    assert len({fingerprint(), fingerprint("training.shots=0"), fingerprint("training.shots=5")}) == 3


@pytest.mark.parametrize("section", ["training", "encoder_tuning"])
def test_nothing_to_learn_from_is_an_error(tiny_config: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"set {section}\.items_per_label above 0"):
        load_config(tiny_config, ["training.shots=0", "encoder_tuning.method=full", f"{section}.items_per_label=0"])
    with pytest.raises(ConfigError, match=r"training\.shots: .*greater than or equal to 0"):
        load_config(tiny_config, ["training.shots=-1"])


# --- a start from another run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def other(invoke: Any, kept: Path, tiny_config: Path, tmp_path: Path) -> Run:
    """A run of another domain with an encoder of its own; it is made once and copied for each test."""
    if not list(kept.iterdir()):
        music = tiny_config.with_name("music.yaml")
        music.write_text(tiny_config.read_text(encoding="utf-8").replace("domain: shop", "domain: music"))
        run = finished(invoke("train", "--config", music, "training.epochs=1", *TUNED))
        shutil.copytree(run.path, kept / run.run_id)
    (source,) = kept.iterdir()
    target = tmp_path / "var/runs/music" / source.name
    shutil.copytree(source, target, dirs_exist_ok=True)
    return Run.open(target)


def test_a_run_starts_from_another_ones_encoder(invoke: Any, other: Run, tiny_encoder: Path) -> None:
    digest = weights_sha256(other.path / "encoder")
    assert digest != weights_sha256(tiny_encoder)
    # The sha256 of the config is that of the encoder it names, which is not used.
    result = invoke("train", f"init_from={other.path}", f"encoder.sha256={'a' * 64}", "training.epochs=5")
    run = finished(result)
    assert run.domain == "shop"
    assert run.manifest.encoder.sha256 == weights_sha256(run.path / "encoder") == digest
    assert run.manifest.metrics["init_from"] == {"run": f"music/{other.run_id}", "encoder_sha256": digest}
    assert f"starts as that of run music/{other.run_id}" in result.output
    assert run.config.encoder.sha256 == "a" * 64
    model = run.load_model()
    assert abs(model.embed([run.catalogue()[0].text]) - run.item_vectors()[:1]).max() < 1e-5  # no vector of the former
    again = invoke("train", f"init_from={other.run_id}", f"encoder.sha256={'a' * 64}", "training.epochs=5")
    assert f"run {run.run_id} is up to date" in again.output  # found by its id, and the same weights: the same run


def test_pooling_and_length_are_the_runs_where_the_config_sets_none(
    other: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def encoder(*overrides: str) -> tuple[str, int]:
        settings = load_config(tiny_config, [f"init_from={other.path}", *overrides])
        found = make_plan(settings, tiny_data, tmp_path / "var").config.encoder
        return found.pooling, found.max_length

    assert encoder() == ("mean", 32)
    assert encoder("encoder.max_length=20") == ("mean", 20)
    manifest = json.loads((other.path / "run.json").read_text(encoding="utf-8"))
    manifest["encoder"]["pooling"] = "cls"
    (other.path / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert encoder() == ("cls", 32)
    only_name = tiny_config.read_text(encoding="utf-8").replace("  max_length: 32\n", "")
    assert only_name != tiny_config.read_text(encoding="utf-8")
    tiny_config.write_text(only_name, encoding="utf-8")
    assert encoder() == ("cls", 32)
    with pytest.raises(RunError, match=r"pools its encoder with 'cls', encoder\.pooling says 'mean'; set") as caught:
        encoder("encoder.pooling=mean")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "run.json").write_text("{}"), "damaged run"),
        (lambda path: (path / "labels.json").unlink(), "not a complete run"),
        (lambda path: (path / "encoder/model.safetensors").write_bytes(b"x"), "is damaged: its encoder"),
        (lambda path: (path / "encoder/model.safetensors").unlink(), "only safetensors are read"),
        (shutil.rmtree, "neither the folder of a run nor the id of one"),
    ],
)
def test_a_run_to_start_from_that_is_none_is_one_line(
    other: Run, invoke: Any, tmp_path: Path, damage: Any, message: str
) -> None:
    damage(other.path)
    result = invoke("train", f"init_from={other.path}")
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "var/runs/shop").exists()


def test_a_command_is_told_its_run_by_folder_or_id(other: Run) -> None:
    runs = other.path.parents[1]
    for name in (str(other.path), other.run_id):
        assert named_run(name, runs, other.domain).path == other.path
    with pytest.raises(RunError, match="is a run of music, the config is of shop; name its own config"):
        named_run(other.run_id, runs, "shop")
    with pytest.raises(RunError, match="--run, RUN=: nobody is neither the folder of a run nor the id of one"):
        named_run("nobody", runs, "music")


# --- the study ------------------------------------------------------------------------------------------------------


def test_a_study_compares_draws_and_encoders(invoke: Any, other: Run, tmp_path: Path) -> None:
    options = ("--shots", "0,2", "--draws", "2", "--init-from", other.run_id, "--split", "test")
    result = invoke("shots", *options, "training.epochs=3")
    assert result.exit_code == 0, result.output
    folder = Path(result.output.strip().rpartition("report: ")[2])
    assert folder.parent == tmp_path / "var/evaluation/shop"
    assert sorted(path.name for path in folder.iterdir()) == ["shots.json", "shots.md", "shots.png"]
    assert (folder / "shots.png").read_bytes().startswith(b"\x89PNG")
    study = json.loads((folder / "shots.json").read_text(encoding="utf-8"))
    methods = ["plain baseline", "tuned head", f"tuned head, encoder of music/{other.run_id}"]
    assert [(one["method"], one["shots"]) for one in study["measurements"]] == [(m, n) for m in methods for n in (0, 2)]
    for one in study["measurements"]:
        assert one["instructions"] == [16, 16]
        assert one["mean"] == pytest.approx(sum(one["top1_accuracy"]) / 2)
        assert all(0 <= value <= 1 for value in one["top1_accuracy"])
    assert len(set(study["encoders"].values())) == 2
    assert f"| {methods[2]} | " in (folder / "shots.md").read_text(encoding="utf-8")


def test_a_study_finds_what_a_run_of_that_draw_finds(invoke: Any) -> None:
    result = invoke("shots", "--shots", "2", "--draws", "2", "--split", "test", "training.seed=3")
    study = json.loads((Path(result.output.strip().rpartition("report: ")[2]) / "shots.json").read_text("utf-8"))
    for draw, seed in enumerate((3, 4)):
        run = finished(invoke("train", "training.shots=2", f"training.seed={seed}"))
        tuned = study["measurements"][1]["top1_accuracy"][draw]
        assert run.manifest.metrics["test"]["labels"]["top1_accuracy"] == pytest.approx(tuned)


def test_a_study_measures_on_what_no_head_was_stopped_on(invoke: Any) -> None:
    result = invoke("shots", "--shots", "1,3", "--draws", "1", "training.epochs=2")
    study = json.loads((Path(result.output.strip().rpartition("report: ")[2]) / "shots.json").read_text("utf-8"))
    assert [one["instructions"] for one in study["measurements"]] == [[4]] * 4  # 16 less 3 of each of the 4 labels
    nothing_left = invoke("shots", "--shots", "9", "--draws", "1")
    assert nothing_left.exit_code == 1
    assert "early stopping takes all at 9 shots, try --split test (SPLIT=test)" in nothing_left.output


@pytest.mark.parametrize("counts", ["", "a", "1,,2", "-1"])
def test_counts_that_are_none_are_refused(invoke: Any, counts: str) -> None:
    result = invoke("shots", f"--shots={counts}")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
