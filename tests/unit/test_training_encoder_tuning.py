"""The encoder's tuning on a tiny encoder: it learns, repeats itself byte for byte, and goes on after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import Train, command_line, finished, without_interactions
from transformers.training_args import ParallelMode

from training.adapters import make_trainable, merged, orthogonality_loss, trainable_parameters
from training.config import EncoderTuningConfig
from training.config_loading import load_config
from training.encoder_source import file_sha256, weights_sha256
from training.errors import ConfigError
from training.model import InstructionModel
from training.plan import make_plan
from training.run import Run
from training.tuning_trainer import COMPLETE, EncoderTrainer, TunableModel, last_checkpoint, training_arguments

FAST = ("encoder_tuning.epochs=3", "encoder_tuning.batch_size=8", "encoder_tuning.rank=4")
RESULTS = ("head.safetensors", "item_vectors.safetensors", "metrics.json")


@pytest.fixture
def tiny_config(tiny_config: Path) -> Path:
    return without_interactions(tiny_config)


@pytest.fixture
def train(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Train:
    return command_line(tiny_config, tiny_data, tmp_path)


def contents(run: Run) -> list[object]:
    digest = weights_sha256(run.path / "encoder")
    assert run.manifest.encoder.sha256 == digest
    return [digest, *((run.path / name).read_bytes() for name in RESULTS)]


def test_a_process_that_sees_two_gpus_uses_one(
    train: Train, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    tuning = load_config(tiny_config, ["encoder_tuning.method=lora"]).encoder_tuning
    assert training_arguments(tmp_path, tuning, 8).parallel_mode == ParallelMode.NOT_PARALLEL
    run = finished(train("var", "encoder_tuning.method=lora", *FAST))
    assert run.manifest.metrics["encoder_tuning"]["steps"] == 3 * 48 / 8  # of two GPUs each would get 8 texts a step


@pytest.mark.parametrize("method", ["lora", "adalora", "full"])
def test_a_tuned_encoder_stands_in_the_run_and_differs(
    train: Train, tiny_encoder: Path, tmp_path: Path, method: str
) -> None:
    settings = ("encoder_tuning.ranking_weight=0.5", "encoder_tuning.learning_rate=0.02")
    result = train("var", f"encoder_tuning.method={method}", *settings, *FAST)
    run = finished(result)
    digest = file_sha256(run.path / "encoder/model.safetensors")
    assert run.manifest.encoder.sha256 == digest != file_sha256(tiny_encoder / "model.safetensors")
    model = run.load_model()
    texts = [item.text for item in run.catalogue()]
    np.testing.assert_allclose(model.embed(texts), run.item_vectors(), atol=1e-5)
    before = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=4)
    assert set(before.encoder.state_dict()) == set(model.encoder.state_dict())  # merged: no adapter is left
    assert np.abs(before.embed(texts) - run.item_vectors()).max() > 1e-3
    record = run.manifest.metrics["encoder_tuning"]
    assert record["method"] == method
    assert (record["trained"] == record["parameters"]) == (method == "full")
    assert f"{record['trained']:,} of {record['parameters']:,} parameters" in result.stderr
    assert not list((tmp_path / "var/cache/tuning").iterdir())


def test_tuning_lowers_the_validation_loss(train: Train) -> None:
    result = train("var", "encoder_tuning.method=full", "encoder_tuning.learning_rate=0.002", *FAST)
    losses = [
        float(line.partition("validation loss ")[2].partition(",")[0])
        for line in result.stderr.splitlines()
        if line.startswith("encoder, epoch")
    ]
    record = finished(result).manifest.metrics["encoder_tuning"]
    assert record["validation_loss"] == pytest.approx(min(losses), abs=1e-4)
    assert min(losses[1:]) < losses[0]


# A real kill -9, of LoRA, is in test_training_processes.py.
@pytest.mark.parametrize("method", ["adalora", "bottleneck", "full"])
def test_a_tuning_cut_off_goes_on_to_the_same_bytes(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    overrides = (f"encoder_tuning.method={method}", "encoder_tuning.ranking_weight=0.5", *FAST)
    whole = contents(finished(train("whole", *overrides)))

    class Killed(BaseException):
        pass

    steps, step = [], EncoderTrainer.training_step

    def killed(self: EncoderTrainer, *arguments: Any, **named: Any) -> torch.Tensor:
        steps.append(self.state.global_step)
        if len(steps) > 6:  # in the second epoch
            raise Killed
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderTrainer, "training_step", killed)
        with pytest.raises(Killed):
            train("cut", *overrides)
    (folder,) = (tmp_path / "cut/cache/tuning").iterdir()
    (folder / "checkpoints/checkpoint-99").mkdir()  # half a checkpoint: the kill came while it was written
    result = train("cut", *overrides)
    assert "going on from checkpoint-6" in result.stderr
    assert contents(finished(result)) == whole


@pytest.mark.parametrize("method", ["adalora", "full"])
def test_a_tuning_killed_after_it_stopped_early_learns_no_more(
    train: Train, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    overrides = (f"encoder_tuning.method={method}", *FAST, "encoder_tuning.epochs=9", "encoder_tuning.patience=1")
    overrides += ("encoder_tuning.learning_rate=0.02", "encoder_tuning.schedule=constant")
    whole = finished(train("whole", *overrides))
    assert whole.manifest.metrics["encoder_tuning"]["epochs"] < 9

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("training.encoder_tuning._record", killed)  # after the last checkpoint, before the result
        with pytest.raises(Killed):
            train("cut", *overrides)
    result = train("cut", *overrides)
    assert "going on from checkpoint-" in result.stderr
    assert "encoder, epoch" not in result.stderr
    assert contents(finished(result)) == contents(whole)


def test_a_finished_tuning_is_not_done_again(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    overrides = ("encoder_tuning.method=lora", *FAST)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.run.row_bytes", full)
        assert train("var", *overrides).exit_code == 1
    result = train("var", *overrides)
    assert "tuned before, used again" in result.stderr
    assert finished(result).manifest.metrics["encoder_tuning"]["method"] == "lora"


def test_a_frozen_encoder_keeps_its_fingerprint(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> None:
    def plan(*overrides: str) -> str:
        return make_plan(load_config(tiny_config, overrides), tiny_data, tmp_path).fingerprint

    assert plan() == plan("encoder_tuning.method=frozen", "encoder_tuning.rank=3")
    assert plan() != plan("encoder_tuning.method=lora") != plan("encoder_tuning.method=lora", "encoder_tuning.rank=3")
    sized = "encoder_tuning.bottleneck_size=8"
    assert plan("encoder_tuning.method=lora") == plan("encoder_tuning.method=lora", sized)
    assert plan("encoder_tuning.method=bottleneck") != plan("encoder_tuning.method=bottleneck", sized)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder_tuning.method=bitfit", "encoder_tuning.method: Input should be 'frozen', 'lora'"),
        ("encoder_tuning.rnk=3", "did you mean 'rank'?"),
        ("encoder_tuning.warmup_ratio=1.5", "encoder_tuning.warmup_ratio"),
        ("encoder_tuning.target_modules=[nowhere]", "name linear layers of the encoder"),
        ("encoder_tuning.precision=float16", "float16 needs a GPU"),
        ("encoder_tuning.precision=bfloat16", "or a CPU with avx512_bf16 or amx_bf16; set float32"),
    ],
)
def test_a_wrong_setting_is_one_line(
    train: Train, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    if "precision" in override and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("training.encoder_tuning._cpu_has_bfloat16", lambda: False)
    result = train("var", "encoder_tuning.method=lora", override)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine would use its GPU")
def test_bfloat16_tunes_where_the_cpu_has_it(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("encoder_tuning.method=lora", "encoder_tuning.learning_rate=0.02", *FAST)
    whole = finished(train("float32", *overrides)).manifest.metrics["encoder_tuning"]
    monkeypatch.setattr("training.encoder_tuning._cpu_has_bfloat16", lambda: True)  # others emulate it, slowly
    half = finished(train("bfloat16", *overrides, "encoder_tuning.precision=bfloat16"))
    record = half.manifest.metrics["encoder_tuning"]
    assert whole["validation_loss"] != record["validation_loss"] == pytest.approx(whole["validation_loss"], rel=0.02)
    tensors = load_file(half.path / "encoder/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_an_error(train: Train) -> None:
    overrides = ("encoder_tuning.method=full", "encoder_tuning.learning_rate=1e30", *FAST)
    result = train("var", *overrides)
    assert result.exit_code == 1
    assert "set a lower learning_rate" in result.stderr


@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "constant"), ("adafactor", "cosine")])
def test_optimisers_schedules_and_accumulation(train: Train, optimizer: str, schedule: str) -> None:
    overrides = (f"encoder_tuning.optimizer={optimizer}", f"encoder_tuning.schedule={schedule}")
    run = finished(
        train("var", "encoder_tuning.method=lora", "encoder_tuning.gradient_accumulation=3", *overrides, *FAST)
    )
    # 16 instructions and 4 × 8 items (a label has no more): 6 batches, 2 steps an epoch.
    assert run.manifest.metrics["encoder_tuning"]["steps"] in {2, 4, 6}


def test_without_validation_instructions_the_training_ones_have_to_do(train: Train, tiny_data: Path) -> None:
    asks = tiny_data / "shop/asks.csv"
    asks.write_text(asks.read_text(encoding="utf-8").replace(",validation\n", ",train\n"), encoding="utf-8")
    record = finished(train("var", "encoder_tuning.method=lora", *FAST)).manifest.metrics["encoder_tuning"]
    assert np.isfinite(record["validation_loss"])


def test_merging_changes_no_output(tiny_encoder: Path) -> None:
    for method in ("lora", "adalora"):
        torch.manual_seed(1)
        model = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2)
        model.encoder = make_trainable(model.encoder, EncoderTuningConfig(method=method, rank=4), 10)  # type: ignore[arg-type, assignment]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name and parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter) / 4)
        model.eval()
        assert (orthogonality_loss(model.encoder) is not None) == (method == "adalora")
        adapted = model.embed(["a blue shirt", "shoes"])
        model.encoder = merged(model.encoder)  # type: ignore[assignment]
        np.testing.assert_allclose(model.embed(["a blue shirt", "shoes"]), adapted, atol=1e-4)
        assert trainable_parameters(model)[1] == sum(p.numel() for p in model.parameters())


def test_the_ranking_loss_pulls_towards_relevant_items(tiny_encoder: Path) -> None:
    model = TunableModel(InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2), 1.0, 0.05)
    ids, mask = model.model.pad(
        [model.model.tokenizer.encode(text).ids for text in ("blue shirt", "blue shirt", "hat")]
    )
    shared = (ids, mask, torch.tensor([0]), torch.ones(1), torch.tensor([0]), torch.tensor([1, 2]))
    model.train()
    for module in model.modules():  # dropout would blur the comparison
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    right = model(*shared, torch.tensor([[1.0, 0.0]]))["loss"]
    wrong = model(*shared, torch.tensor([[0.0, 1.0]]))["loss"]
    assert float(right) < float(wrong)
    model.eval()  # validation measures the labels alone: log 2 with a head of zeros
    assert float(model(*shared, torch.tensor([[0.0, 1.0]]))["loss"]) == pytest.approx(np.log(2))


def test_only_a_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


def test_unknown_target_modules_are_a_config_error(tiny_encoder: Path) -> None:
    model = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=2)
    with pytest.raises(ConfigError, match="target_modules"):
        make_trainable(model.encoder, EncoderTuningConfig(method="lora", target_modules=("nowhere",)), 10)
