"""What a tuning writes for people to watch: all of the curves, nothing of the texts, and no change of the run."""

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_helpers import Train, command_line, finished, without_interactions
from wandb.sdk.wandb_run import Run as WandbRun
from wandb.sdk.wandb_summary import SummaryDict

TUNED = ("encoder_tuning.method=full", "encoder_tuning.epochs=2", "encoder_tuning.batch_size=16")
HEADS = ("training.untaught_weights=[1.0,0.1]",)
WEIGHTS = ("", "_untaught_weight_0.1")
PEOPLE = (b"show me the", b"ask-1", b"user-1", b"item-1")


@pytest.fixture
def tiny_config(tiny_config: Path) -> Path:
    return without_interactions(tiny_config)


@pytest.fixture
def train(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Train:
    return command_line(tiny_config, tiny_data, tmp_path)


def curve(folder: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    assert tag in events.Tags()["scalars"], events.Tags()["scalars"]
    points = events.Scalars(tag)
    assert len({point.step for point in points}) == len(points), "two curves have one name"
    return {point.step: point.value for point in points}


def missing(*names: str) -> Any:
    find = __import__("importlib.util").util.find_spec
    return mock.patch("importlib.util.find_spec", lambda name: None if name in names else find(name))


def test_tensorboard_has_the_curves_and_the_run_does_not_change(train: Train, tmp_path: Path) -> None:
    run = finished(train("var", *TUNED, *HEADS))
    folder = tmp_path / "var/logs/tracking/shop" / run.run_id[-8:]
    losses = curve(folder / "encoder", "eval/loss")
    assert len(losses) == 2
    assert min(losses.values()) == pytest.approx(run.manifest.metrics["encoder_tuning"]["validation_loss"], abs=1e-4)
    assert set(curve(folder / "encoder", "train/loss")) == set(losses)
    heads, encoders = (curve(folder / "encoder", f"train/{part}_learning_rate") for part in ("head", "encoder"))
    for step, rate in encoders.items():  # 5e-5 and 3e-3 on one schedule
        assert rate == pytest.approx(heads[step] * 5e-5 / 3e-3)
    tags = [f"weight_decay_0.0{weight}{start}" for weight in WEIGHTS for start in ("", "_from_encoder_tuning")]
    heads_found = [curve(folder / "head", f"validation_loss/{tag}") for tag in tags]
    for found in heads_found:  # each epoch of each head once, on a curve of its own
        assert list(found) == list(range(1, len(found) + 1))
    assert len({tuple(found.values()) for found in heads_found}) == len(tags)
    lowest = min(value for found in heads_found for value in found.values())
    assert run.manifest.metrics["head"]["validation_loss"] <= lowest + 1e-4
    accuracy = curve(folder / "result", "test/labels/top1_accuracy")
    assert accuracy == {0: pytest.approx(run.manifest.metrics["test"]["labels"]["top1_accuracy"])}
    written = b"".join(path.read_bytes() for path in folder.rglob("*tfevents*"))
    assert written
    assert not [text for text in PEOPLE if text in written]

    other = finished(train("other", *TUNED, *HEADS, "tracking.backend=none", "search.trials=3"))
    assert not (tmp_path / "other/logs").exists()
    assert other.manifest.fingerprint == run.manifest.fingerprint
    files = {path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file()}
    for name in files - {Path("run.json")}:  # which holds the time
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name


def test_wandb_offline_writes_under_var_alone_and_calls_nobody(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with socket.create_server(("127.0.0.1", 0)) as server, mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
            del os.environ[name]
        os.environ.update(
            HOME=str(tmp_path / "home"), WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}", NO_PROXY="*"
        )
        monkeypatch.setattr(socket, "gethostname", lambda: "a-secret-machine")
        log, update = WandbRun.log, SummaryDict.update
        with (
            mock.patch.object(WandbRun, "log", autospec=True, side_effect=log) as logged,
            mock.patch.object(SummaryDict, "update", autospec=True, side_effect=update) as summary,
        ):
            run = finished(train("var", *TUNED, "tracking.backend=wandb"))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert list((tmp_path / "home").iterdir()) == list((tmp_path / "work").iterdir()) == []
    folder = tmp_path / "var/logs/tracking/shop" / run.run_id[-8:]
    # What W&B was given: its own process may write it a little later.
    given = {name for call in [*logged.call_args_list, *summary.call_args_list] for name in call.args[1]}
    expected = {"eval/loss", "train/encoder_learning_rate", "head/validation_loss/weight_decay_0.0"}
    assert expected | {"result/test/ranking/ndcg@10"} <= given
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    secrets = (*PEOPLE, str(tmp_path).encode(), b"a-secret-machine")
    everything = b"".join(path.read_bytes() for path in folder.rglob("run-*") if path.is_file())
    assert not [text for text in secrets if text in everything]


def test_online_without_a_key_is_one_line(train: Train, tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, NETRC=str(tmp_path / "none"), WANDB_API_KEY=""):
        result = train("var", "tracking.backend=wandb", "tracking.mode=online")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: tracking.mode is online, but there is no key")


@pytest.mark.parametrize(("backend", "extra"), [("wandb", "wandb"), ("tensorboard", "tracking")])
def test_a_package_that_is_asked_for_must_be_there(train: Train, backend: str, extra: str) -> None:
    with missing(backend):
        result = train("var", f"tracking.backend={backend}")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {backend} is not installed; pip install 'instructrec[{extra}]'\n"


def test_the_default_does_without_its_package(train: Train, tmp_path: Path) -> None:
    with missing("tensorboard"):
        result = train("var")
    assert "nothing is tracked: tensorboard is not installed" in result.stderr
    finished(result)
    assert not (tmp_path / "var/logs").exists()
