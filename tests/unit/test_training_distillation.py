"""Layer pruning with distillation on tiny encoders: the student is an ordinary run, and near its teacher."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from training_helpers import Train, command_line, finished, without_interactions

from training.config_loading import load_config
from training.dataset import Dataset, Instruction, Item
from training.distillation_config import DistillationConfig
from training.distillation_examples import Student, distillation_texts
from training.encoder_source import file_sha256, weights_sha256
from training.errors import ConfigError, EncoderError
from training.model import InstructionModel
from training.plan import make_plan
from training.pruning import kept_layers, layer_list, pruned
from training.run import Run
from training.tuning_trainer import EncoderTrainer

FAST = ("distillation.layers=1", "distillation.epochs=3", "distillation.batch_size=16")
RESULTS = ("encoder/model.safetensors", "head.safetensors", "item_vectors.safetensors")
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
FAMILIES = {
    "bert": (transformers.BertConfig, SIZES),
    "roberta": (transformers.RobertaConfig, SIZES),
    "distilbert": (transformers.DistilBertConfig, {"vocab_size": 40, "dim": 16, "hidden_dim": 32, "n_heads": 2}),
    "gpt2": (transformers.GPT2Config, {"vocab_size": 40, "n_embd": 16, "n_head": 2}),
    "llama": (transformers.LlamaConfig, SIZES),
    "qwen2": (transformers.Qwen2Config, {**SIZES, "num_key_value_heads": 1, "max_window_layers": 2}),
}


@pytest.fixture
def tiny_config(tiny_config: Path) -> Path:
    return without_interactions(tiny_config)


@pytest.fixture
def train(tiny_config: Path, tiny_data: Path, tmp_path: Path) -> Train:
    return command_line(tiny_config, tiny_data, tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teacher is kept for all tests here; each gets a copy."""
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture
def teacher(made: Path, train: Train, tmp_path: Path) -> Run:
    if not list(made.iterdir()):
        run = finished(train("teacher"))
        shutil.copytree(run.path, made / run.run_id)
    (kept,) = made.iterdir()
    copy = tmp_path / kept.name
    shutil.copytree(kept, copy, dirs_exist_ok=True)
    return Run.open(copy)


def contents(run: Run) -> list[bytes]:
    return [(run.path / name).read_bytes() for name in RESULTS]


def family(name: str, layers: int = 4) -> transformers.PreTrainedModel:
    kind, sizes = FAMILIES[name]
    torch.manual_seed(0)
    config = kind(**sizes, num_hidden_layers=layers, pad_token_id=0, initializer_range=0.3)
    model: transformers.PreTrainedModel = transformers.AutoModel.from_config(config)
    return model.eval()


def test_the_student_is_an_ordinary_run_with_fewer_layers(train: Train, teacher: Run, tmp_path: Path) -> None:
    result = train("var", f"distillation.teacher={teacher.path}", *FAST)
    run = finished(result)
    model = run.load_model()
    assert model.encoder.config.num_hidden_layers == 1
    assert len(layer_list(model.encoder)[1]) == 1
    np.testing.assert_allclose(model.embed([item.text for item in run.catalogue()]), run.item_vectors(), atol=1e-5)
    assert run.manifest.encoder.sha256 == file_sha256(run.path / "encoder/model.safetensors")
    assert run.manifest.encoder.sha256 != teacher.manifest.encoder.sha256
    record = run.manifest.metrics["distillation"]
    assert (record["teacher"], record["teacher_layers"], record["layers"]) == (teacher.run_id, 2, [0])
    assert record["parameters"] < record["teacher_parameters"]
    assert record["trained"] == sum(p.numel() for p in layer_list(model.encoder)[1].parameters())
    # The embeddings stay the teacher's; the kept layer learned.
    before, after = teacher.load_model().encoder.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if "encoder.layer" not in key)
    assert not all(torch.equal(after[key], before[key]) for key in after)
    assert "keeps the layers [0]" in result.stderr
    assert not list((tmp_path / "var/cache/tuning").iterdir())
    assert f"run {run.run_id} is up to date" in train("var", f"distillation.teacher={teacher.path}", *FAST).stderr


def test_distilling_brings_the_student_nearer_to_its_teacher(train: Train, teacher: Run) -> None:
    settings = ("distillation.layers=1", "distillation.epochs=6", "distillation.batch_size=16")
    run = finished(train("var", f"distillation.teacher={teacher.path}", "distillation.learning_rate=0.01", *settings))
    whole = teacher.load_model()
    texts = [one.text for one in teacher.instructions("test")]
    cut = teacher.load_model()
    cut.encoder = pruned(cut.encoder, [0])
    truth = whole.embed(texts)

    def agreement(model: InstructionModel) -> float:
        return float((model.embed(texts) * truth).sum(axis=1).mean())

    assert agreement(run.load_model()) > agreement(cut) + 0.1


def test_a_distillation_cut_off_goes_on_to_the_same_bytes(
    train: Train, teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"distillation.teacher={teacher.path}", *FAST)
    whole = contents(finished(train("whole", *overrides)))
    # The teacher may have moved: its weights count, not its place.
    shutil.copytree(teacher.path, tmp_path / "moved")
    overrides = (f"distillation.teacher={tmp_path / 'moved'}", *FAST)

    class Killed(BaseException):
        pass

    step = EncoderTrainer.training_step

    def killed(self: EncoderTrainer, *arguments: Any, **named: Any) -> torch.Tensor:
        if self.state.epoch and self.state.epoch > 1.3:
            raise Killed
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderTrainer, "training_step", killed)
        with pytest.raises(Killed):
            train("cut", *overrides)
    result = train("cut", *overrides)
    assert "going on from checkpoint-" in result.stderr
    run = finished(result)
    assert contents(run) == whole
    assert run.run_id.endswith(next((tmp_path / "whole/runs/shop").iterdir()).name[-8:])  # the same fingerprint


def test_a_finished_distillation_is_not_done_again(train: Train, teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (f"distillation.teacher={teacher.path}", *FAST)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.run.row_bytes", full)
        assert train("var", *overrides).exit_code == 1
    result = train("var", *overrides)
    assert "distilled before, used again" in result.stderr
    assert finished(result).manifest.metrics["distillation"]["layers"] == [0]


def test_the_plan_depends_on_the_settings_and_the_teacher(
    teacher: Run, tiny_config: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def plan(*overrides: str) -> str:
        return make_plan(load_config(tiny_config, overrides), tiny_data, tmp_path).fingerprint

    named = f"distillation.teacher={teacher.path}"
    assert plan() == teacher.manifest.fingerprint
    shutil.copytree(teacher.path, tmp_path / "runs/music" / teacher.run_id)  # its id names it too
    assert plan(f"distillation.teacher={teacher.run_id}") == plan(named)
    assert len({plan(), plan(named), plan(named, "distillation.layers=1"), plan(named, "distillation.seed=1")}) == 4
    head = teacher.path / "head.safetensors"
    before = plan(named)
    head.write_bytes(head.read_bytes()[:-1] + b"\x01")
    assert plan(named) != before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.layers=3", "distillation.layers is 3, the teacher has 2; keep fewer"),
        ("distillation.layers=[0, 2]", "names layer 2, the teacher's are 0 to 1"),
        ("distillation.layers=[1, 0]", "in ascending order"),
        ("distillation.layers=[]", "in ascending order"),
        ("distillation.layers=0", "distillation.layers"),
        ("distillation.texts=some", "distillation.texts"),
        (
            "distillation.teacher=nowhere",
            "distillation.teacher: nowhere is neither the folder of a run nor the id",
        ),
        ("distillation.taecher=x", "did you mean 'teacher'?"),
        ("encoder_tuning.method=lora", "tune the teacher, then distil"),
        ("encoder.pooling=cls", "encoder.pooling is cls, the teacher's is mean"),
        ("encoder.max_length=16", "encoder.max_length is 16, the teacher's is 32"),
        ("distillation.learning_rate=1e30", "set a lower learning_rate"),
    ],
)
def test_a_wrong_setting_is_one_line(train: Train, teacher: Run, override: str, message: str) -> None:
    settings = [f"distillation.teacher={teacher.path}", *FAST, override]
    result = train("var", *settings)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_bottleneck_adapters_and_several_processes_are_refused(
    train: Train, teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import processes  # noqa: PLC0415

    monkeypatch.setattr(processes, "count", lambda: 2)
    result = train("var", f"distillation.teacher={teacher.path}", "distillation.layers=1")
    assert result.exit_code == 1
    assert "runs in one process" in result.output
    monkeypatch.undo()
    adapted = tmp_path / "adapted"
    shutil.copytree(teacher.path, adapted)
    (adapted / "encoder" / "bottleneck.json").write_text("{}", encoding="utf-8")
    (adapted / "encoder" / "bottleneck.safetensors").write_bytes(b"")
    manifest = json.loads((adapted / "run.json").read_text(encoding="utf-8"))
    manifest["encoder"]["sha256"] = weights_sha256(adapted / "encoder")
    (adapted / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = train("var", f"distillation.teacher={adapted}", "distillation.layers=1")
    assert result.exit_code == 1
    assert "bottleneck adapters cannot be pruned" in result.output


def test_a_teacher_is_required(train: Train) -> None:
    assert "distillation.teacher is missing" in train("var", "distillation.layers=1").stderr


def test_a_teacher_that_does_not_fit_is_one_line(train: Train, teacher: Run, tiny_data: Path) -> None:
    named = f"distillation.teacher={teacher.path}"
    tokenizer = teacher.path / "encoder/tokenizer.json"
    whole = tokenizer.read_text(encoding="utf-8")
    tokenizer.write_text(whole + "\n", encoding="utf-8")
    assert "has another tokenizer than encoder.name" in train("var", named).stderr
    tokenizer.write_text(whole, encoding="utf-8")

    weights = teacher.path / "encoder/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    assert "is damaged: its encoder is not the one that was written" in train("var", named).stderr
    weights.write_bytes(content)

    for name in ("items.csv", "asks.csv"):
        table = tiny_data / "shop" / name
        table.write_text(table.read_text(encoding="utf-8").replace(",Bags,", ",Sacks,"), encoding="utf-8")
    result = train("var", named)
    assert result.exit_code == 1
    assert "only the teacher has 'Bags'; name a run of this dataset" in result.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_encoder_computes_with_the_kept_layers(name: str, tmp_path: Path) -> None:
    whole = family(name)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    student = pruned(whole, [0, 3])
    assert whole.config.num_hidden_layers == 4
    # The whole with its middle layers made to pass their input on computes the same.
    _, layers = layer_list(whole)
    for place in (1, 2):
        passing = layers[place]

        def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return hidden_states

        passing.forward = forward
    with torch.inference_mode():
        expected = whole(input_ids=ids, attention_mask=mask).last_hidden_state
        computed = student(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(computed, expected)
        student.save_pretrained(tmp_path)
        again = transformers.AutoModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(input_ids=ids, attention_mask=mask).last_hidden_state, expected)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(whole).__name__]


def test_layers_that_cannot_be_found_are_an_error() -> None:
    sizes = {**SIZES, "embedding_size": 16, "num_hidden_layers": 4}
    shared = transformers.AutoModel.from_config(transformers.AlbertConfig(**sizes))
    with pytest.raises(EncoderError, match="cannot be pruned"):
        layer_list(shared)


def test_layers_that_are_not_alike_are_an_error() -> None:
    config = transformers.ModernBertConfig(**SIZES, num_hidden_layers=4, pad_token_id=0)
    whole = transformers.AutoModel.from_config(config)  # its first layer has one norm less than the others
    assert len(layer_list(pruned(whole, [0, 3]))[1]) == 2
    with pytest.raises(EncoderError, match="list others in distillation"):
        pruned(whole, [1, 3])


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [(3, 6, (0, 2, 5)), (1, 6, (0,)), (2, 12, (0, 11)), (6, 6, tuple(range(6))), ((1, 4), 6, (1, 4))],
)
def test_layers_are_kept_evenly_with_the_first_and_the_last(layers: Any, total: int, kept: tuple[int, ...]) -> None:
    assert kept_layers(layers, total) == kept


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="the teacher has 2"):
        kept_layers(3, 2)
    with pytest.raises(ConfigError, match="0 to 1"):
        kept_layers((0, 2), 2)


def asked(text: str, split: Any) -> Instruction:
    return Instruction(text, text, "a", {}, {}, split)


def test_no_held_out_text_is_learned_from() -> None:
    items = (*(Item(str(n), f"title {n}", f"text {n}", "a") for n in range(5)), Item("5", "asked", "x", "a"))
    instructions = (asked("train", "train"), asked("seen", "train"), asked("seen", "test"), asked("asked", "test"))
    dataset = Dataset("s", items, (*instructions, asked("held", "validation")), (), False, False, "f", {})
    texts, held = distillation_texts(dataset, "all", 0)
    assert held == ["held"]
    assert "asked" not in texts
    assert "seen" not in texts
    assert len(texts) == len(set(texts)) == 1 + 5 * 2 + 1
    dataset = replace(dataset, unlabelled=("held", "new", "train"))
    with_more, _ = distillation_texts(dataset, 0, 0)
    assert with_more == ["train", "new"]
    assert len(distillation_texts(dataset, 2, 0)[0]) in {5, 6}  # an item whose title is held out gives its text alone
    assert distillation_texts(dataset, 2, 0) == distillation_texts(dataset, 2, 0)


def test_nothing_held_out_is_learned_in_other_letters_nor_after_few_shots() -> None:
    items = (Item("0", "Blue Shirt", "a shirt", "a"), Item("1", "Red Hat", "a hat", "a"))
    dataset = Dataset("s", items, (asked("train", "train"), asked("blue  shirt", "test")), (), False, False, "f", {})
    assert distillation_texts(dataset, "all", 0)[0] == ["train", "a shirt", "a hat", "Red Hat"]
    left_out = replace(dataset, held_out=frozenset({"red hat", "blue shirt"}))
    assert distillation_texts(left_out, "all", 0)[0] == ["train", "a shirt", "a hat"]


def test_no_text_left_to_learn_from_is_an_error() -> None:
    instructions = (asked("same", "train"), asked("same", "test"))
    dataset = Dataset("s", (Item("0", "t", "x", "a"),), instructions, (), False, False, "f", {})
    with pytest.raises(ConfigError, match="texts is 0"):
        distillation_texts(dataset, 0, 0)
    assert distillation_texts(dataset, 1, 0)[0] == ["x", "t"]


def test_without_validation_the_training_texts_have_to_do() -> None:
    dataset = Dataset("s", (Item("0", "t", "x", "a"),), (asked("train", "train"),), (), False, False, "f", {})
    assert distillation_texts(dataset, "all", 0) == (["train", "x", "t"], ["train"])


def test_the_loss_is_zero_at_the_teacher_and_grows_with_the_distance(tiny_encoder: Path) -> None:
    model = InstructionModel.from_folder(tiny_encoder, "mean", 32, labels=3)
    torch.nn.init.normal_(model.head.weight)
    ids, mask = model.pad([model.tokenizer.encode(text).ids for text in ("blue shirt", "a red hat")])
    with torch.no_grad():
        h, u = model(ids, mask)
        student = Student(model, temperature=2.0, label_weight=0.5)
        labels = u.argmax(dim=1)
        assert float(student(ids, mask, h, labels)["loss"]) == pytest.approx(0, abs=1e-5)
        far = torch.nn.functional.normalize(-h + 0.1, dim=1)
        loss = float(student(ids, mask, far, labels)["loss"])
        taught, own = torch.softmax(model.head(far) / 2, 1), torch.softmax(u / 2, 1)
        divergence = (taught * (taught / own).log()).sum(1).mean()
        assert loss == pytest.approx(float((1 - (h * far).sum(1)).mean() + 0.5 * 4 * divergence), rel=1e-5)


def test_the_defaults_keep_three_layers() -> None:
    assert DistillationConfig(teacher="run").layers == 3
