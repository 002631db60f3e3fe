"""Real processes: one that is killed with -9 goes on to the same result, and two tune one encoder together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_helpers import command_line, finished, without_interactions

from training.encoder_source import weights_sha256
from training.run import Run, copy_encoder
from training.tuning_trainer import COMPLETE, EncoderTrainer

LORA = ("encoder_tuning.method=lora", "encoder_tuning.batch_size=8", "encoder_tuning.rank=4")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m")


PATIENCE = 280  # seconds; an idle machine needs ten


class Training:
    """`python -m training` of the tiny dataset as a process of its own; `launcher` stands before `training`."""

    def __init__(self, config: Path, data: Path, root: Path) -> None:
        self._config, self._data, self._root = config, data, root

    def start(self, var: str, *overrides: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        arguments = ["--config", self._config, "--data", self._data, "--var", self._root / var, "--print-run"]
        command = [sys.executable, "-m", *launcher, "training", *map(str, arguments), *overrides]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        )

    def finish(self, var: str, *overrides: str, launcher: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Exit code, standard output and standard error; nothing of it outlives a time-out."""
        process = self.start(var, *overrides, launcher=launcher)
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                process.terminate()  # a launcher ends the processes that it started, which are not of its group
                process.wait(timeout=60)
        return process.returncode, output, errors


@pytest.fixture
def training(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Training:
    return Training(without_interactions(tiny_config), tiny_data, tmp_path)


def result(output: str) -> list[object]:
    run = Run.open(output.strip())
    assert weights_sha256(run.path / "encoder") == run.manifest.encoder.sha256
    return [
        run.manifest.encoder.sha256,
        (run.path / "head.safetensors").read_bytes(),
        (run.path / "metrics.json").read_bytes(),
    ]


def test_a_process_killed_twice_goes_on_to_the_same_result(
    training: Training, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    overrides = (*LORA, "encoder_tuning.epochs=30", "encoder_tuning.patience=30")
    process = training.start("killed", *overrides)
    tuning = tmp_path / "killed/cache/tuning"
    until = time.monotonic() + PATIENCE
    while not list(tuning.glob(f"*/checkpoints/checkpoint-*/{COMPLETE}")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    [checkpoints] = tuning.glob("*/checkpoints")
    # The second kill comes while a checkpoint is written: all of it is there but the mark, and a file is cut short.
    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    half = checkpoints / "checkpoint-999"
    half.mkdir()
    for path in newest.iterdir():
        if path.name != COMPLETE:
            (half / path.name).write_bytes(path.read_bytes()[:100])
    code, output, errors = training.finish("killed", *overrides)
    assert code == 0, errors
    assert "encoder: going on from checkpoint-" in errors
    assert "checkpoint-999" not in errors
    # The whole tuning runs in this process: its bytes must be the same, and a process takes seconds to start.
    whole = command_line(tiny_config, tiny_data, tmp_path)("whole", *overrides)
    assert "going on" not in whole.stderr
    assert result(output) == result(str(finished(whole).path))


@pytest.mark.parametrize("part", ["encoder_tuning", "distillation"])
def test_a_second_training_leaves_the_first_alone_until_its_run_is_there(
    training: Training, tiny_config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    train = command_line(tiny_config, tiny_data, tmp_path)
    overrides = (*LORA, "encoder_tuning.epochs=1")
    if part == "distillation":
        overrides = (f"distillation.teacher={finished(train('teacher')).path}", "distillation.layers=1")
    seconds: list[tuple[int, str, str]] = []

    step, copy = EncoderTrainer.training_step, copy_encoder

    def first_step(*arguments: Any, **named: Any) -> torch.Tensor:
        if not seconds:
            seconds.append(training.finish("var", *overrides))
        return step(*arguments, **named)

    def making_the_run(*arguments: Any) -> None:
        seconds.append(training.finish("var", *overrides))
        copy(*arguments)

    monkeypatch.setattr(EncoderTrainer, "training_step", first_step)
    monkeypatch.setattr("training.run.copy_encoder", making_the_run)
    run = finished(train("var", *overrides))
    assert len(seconds) == 2
    for code, output, errors in seconds:
        assert (code, output) == (1, "")
        assert errors.rstrip().splitlines()[-1].startswith(f"Error: {tmp_path / 'var/cache/tuning'}")
        assert "another training of the same settings and data works here; wait for it or stop it" in errors
    assert not list((tmp_path / "var/cache/tuning").iterdir())
    monkeypatch.undo()
    assert finished(train("var", *overrides)).run_id == run.run_id


def test_two_processes_make_one_run(training: Training, tmp_path: Path) -> None:
    overrides = (*LORA, "encoder_tuning.epochs=2", "encoder_tuning.ranking_weight=0.5")
    code, output, errors = training.finish("var", *overrides, launcher=LAUNCH)
    assert code == 0, errors
    [run] = (tmp_path / "var/runs/shop").iterdir()
    assert output.strip() == str(run)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["encoder_tuning"]
    assert metrics["processes"] == 2
    assert metrics["steps"] == 12  # 48 texts, 8 a step, shared out: as many steps as one process makes
    assert errors.count("encoder, epoch 2:") == 1  # the other process says nothing
    assert not list((tmp_path / "var/cache/tuning").iterdir())
    result(output)


def test_two_processes_learn_from_the_same_cut_and_augmented_dataset(
    training: Training, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    words = [f"{word} {colour} bag or hat" for word in ("a", "the") for colour in ("blue", "red", "green", "black")]
    (tiny_data / "shop/words.csv").write_text("\n".join(["words", *words]) + "\n", encoding="utf-8")
    tree = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    tree["sources"][0]["unlabelled"] = {"file": "shop/words.csv", "text": "words"}
    tree["sources"][0]["synthetic"] = {"phrases": ["{colour} {label}", "{title}"], "at_least": 5}
    tiny_config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    teacher = finished(command_line(tiny_config, tiny_data, tmp_path)("var", "training.shots=0"))
    taught = (f"self_training.teacher={teacher.run_id}", "self_training.confidence=0", "self_training.nearest=1")
    overrides = ("training.shots=2", *taught, *LORA, "encoder_tuning.epochs=2", "encoder_tuning.items_per_label=1")
    code, output, errors = training.finish("var", *overrides, launcher=LAUNCH)
    assert code == 0, errors
    assert errors.count("labelled 8 of 8 unlabelled instructions") == 1
    metrics = Run.open(output.strip()).manifest.metrics
    assert metrics["shots"]["train"] == 8
    # 8 instructions, up to 20 synthetic ones, 8 that the teacher labelled and 4 items: 5 steps an epoch.
    assert metrics["encoder_tuning"]["processes"] == 2
    assert metrics["encoder_tuning"]["steps"] == 10
    result(output)


def test_an_error_ends_both_processes_and_is_said_once(training: Training, tmp_path: Path) -> None:
    code, output, errors = training.finish("var", *LORA, "encoder_tuning.batch_size=7", launcher=LAUNCH)
    assert code != 0
    assert output == ""
    assert errors.count("7 texts cannot be shared out evenly among 2 processes; set a multiple of 2") == 1
    assert not (tmp_path / "var/runs").exists()
