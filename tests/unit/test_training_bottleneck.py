"""Bottleneck adapters: where they stand, that they start as nothing, and that their files bring them back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from export.int8 import quantize_encoder
from export.onnx_graph import export_encoder
from export.report import FP32_BUDGET, INT8_BUDGET
from export.tokens import calibration_batches
from export.verify import verify_encoder
from training.adapters import make_trainable, trainable_parameters
from training.bottleneck import add_bottlenecks, bottleneck_size, save_bottlenecks, save_encoder
from training.config import EncoderTuningConfig
from training.encoder_source import BOTTLENECK_SETTINGS, BOTTLENECK_WEIGHTS, weights_sha256
from training.errors import ConfigError, EncoderError
from training.model import InstructionModel
from training.run import copy_encoder

TEXTS = ["a blue shirt", "shoes for the hat", "i want a red bag", "show me", "black", "buy the green hat with a bag"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS: dict[str, transformers.PretrainedConfig] = {
    "roberta": transformers.RobertaConfig(vocab_size=200, pad_token_id=0, **SMALL),
    "distilbert": transformers.DistilBertConfig(vocab_size=200, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "gpt2": transformers.GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=2, bos_token_id=3, eos_token_id=3, pad_token_id=0
    ),
    "llama": transformers.LlamaConfig(vocab_size=200, pad_token_id=0, **SMALL),
}
METHOD = EncoderTuningConfig(method="bottleneck", bottleneck_size=4)


def read(folder: Path) -> InstructionModel:
    return InstructionModel.from_folder(folder, "mean", 32, labels=3)


def learn(model: InstructionModel) -> None:
    """Move all that may learn, as a tuning would."""
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 5)


@pytest.fixture
def adapted(tiny_encoder: Path, tmp_path: Path) -> tuple[InstructionModel, Path]:
    """A model whose adapters learned something, and its folder."""
    torch.manual_seed(1)
    model = read(tiny_encoder)
    make_trainable(model.encoder, METHOD, 10)
    learn(model)
    folder = tmp_path / "adapted"
    copy_encoder(tiny_encoder, folder)
    save_bottlenecks(model.encoder, folder)
    return model, folder


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_layer_gets_two_that_start_as_nothing_and_take_part(
    kind: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(KINDS[kind]).save_pretrained(tmp_path)
    shutil.copyfile(tiny_encoder / "tokenizer.json", tmp_path / "tokenizer.json")
    model = read(tmp_path)
    before = model.embed(TEXTS)
    make_trainable(model.encoder, METHOD, 10)
    np.testing.assert_allclose(model.embed(TEXTS), before, atol=5e-3)
    learning = [name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
    assert len([name for name in learning if name.endswith("bottleneck.down.weight")]) == 4
    assert all("norm" in name.lower() or ".ln_" in name or "bottleneck" in name or "ln_f" in name for name in learning)
    h, _ = model(*model.pad([model.tokenizer.encode(TEXTS[0]).ids]))
    h[0, 0].backward()
    parameters = dict(model.encoder.named_parameters())
    for name in learning:
        if "bottleneck.up" in name:
            gradient = parameters[name].grad
            assert gradient is not None
            assert float(gradient.abs().sum()) > 0, name


def test_the_paper_s_formula(tiny_encoder: Path) -> None:
    model = read(tiny_encoder)
    add_bottlenecks(model.encoder, 4)
    projection = model.encoder.get_submodule("encoder.layer.1.output.dense")
    inputs, weights = torch.randn(2, 64), dict(projection.named_parameters())
    plain = inputs @ weights["weight"].T + weights["bias"]
    inner = plain @ weights["bottleneck.down.weight"].T + weights["bottleneck.down.bias"]
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    expected = plain + gelu @ weights["bottleneck.up.weight"].T + weights["bottleneck.up.bias"]
    torch.testing.assert_close(projection(inputs), expected)


def test_the_default_trains_at_most_three_percent_of_minilm() -> None:
    with torch.device("meta"):
        encoder = transformers.AutoModel.from_config(
            transformers.BertConfig(
                hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
            )
        )
        make_trainable(encoder, EncoderTuningConfig(method="bottleneck"), 10)
    trained, whole = trainable_parameters(encoder)
    assert whole == 22_713_216
    assert 0.02 < trained / whole < 0.03


def test_the_files_bring_the_adapters_back(adapted: tuple[InstructionModel, Path], tiny_encoder: Path) -> None:
    model, folder = adapted
    again = read(folder)
    assert bottleneck_size(again.encoder) == 4
    assert (again.embed(TEXTS) == model.embed(TEXTS)).all()
    assert np.abs(again.embed(TEXTS) - read(tiny_encoder).embed(TEXTS)).max() > 0.01
    assert (folder / "model.safetensors").read_bytes() == (tiny_encoder / "model.safetensors").read_bytes()


def test_the_sha256_covers_the_adapters(adapted: tuple[InstructionModel, Path], tiny_encoder: Path) -> None:
    _, folder = adapted
    digest = weights_sha256(folder)
    assert digest != weights_sha256(tiny_encoder)
    tensors = load_file(folder / BOTTLENECK_WEIGHTS)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, folder / BOTTLENECK_WEIGHTS)
    assert weights_sha256(folder) != digest


def test_a_second_tuning_starts_from_the_adapters(adapted: tuple[InstructionModel, Path], tmp_path: Path) -> None:
    _, folder = adapted
    model = read(folder)
    before = model.embed(TEXTS)
    make_trainable(model.encoder, METHOD, 10)
    assert (model.embed(TEXTS) == before).all()
    with pytest.raises(ConfigError, match="bottleneck_size is 8, but the encoder's adapters have 4"):
        make_trainable(model.encoder, METHOD.model_copy(update={"bottleneck_size": 8}), 10)
    with pytest.raises(ConfigError, match="lora cannot be merged into an encoder that has bottleneck adapters"):
        make_trainable(model.encoder, EncoderTuningConfig(method="lora"), 10)
    make_trainable(model.encoder, EncoderTuningConfig(method="full"), 10)
    learn(model)
    full = tmp_path / "full"
    save_encoder(model.encoder, full)
    shutil.copyfile(folder / "tokenizer.json", full / "tokenizer.json")
    assert (read(full).embed(TEXTS) == model.embed(TEXTS)).all()
    assert not [name for name in load_file(full / "model.safetensors") if "bottleneck" in name]


def test_damaged_files_are_one_line(adapted: tuple[InstructionModel, Path]) -> None:
    _, folder = adapted
    weights, settings = folder / BOTTLENECK_WEIGHTS, folder / BOTTLENECK_SETTINGS
    content = weights.read_bytes()
    for damage in (content[:50], b""):
        weights.write_bytes(damage)
        with pytest.raises(EncoderError, match="bottleneck adapters cannot be loaded"):
            read(folder)
    weights.unlink()
    with pytest.raises(EncoderError, match="No such file"):
        read(folder)
    weights.write_bytes(content)
    for text in ("{", '{"schema_version": 2, "size": 4}', '{"size": 0}'):
        settings.write_text(text, encoding="utf-8")
        with pytest.raises(EncoderError, match="bottleneck adapters cannot be loaded"):
            read(folder)
    settings.write_text('{"size": 5}', encoding="utf-8")
    with pytest.raises(EncoderError, match="does not fit the encoder"):
        read(folder)
    settings.unlink()
    with pytest.raises(EncoderError, match="No such file"):
        read(folder)


def test_an_encoder_of_another_build_is_refused() -> None:
    with torch.device("meta"):
        encoder = transformers.AutoModel.from_config(transformers.AlbertConfig(embedding_size=16, **SMALL))
    with pytest.raises(ConfigError, match="no known place in an encoder of type 'albert'; use lora, or one like BERT"):
        add_bottlenecks(encoder, 4)


def test_the_adapters_are_in_the_exported_graphs(adapted: tuple[InstructionModel, Path], tmp_path: Path) -> None:
    _, folder = adapted
    model = read(folder)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_encoder(model, fp32)
    vectors = model.embed(TEXTS)
    report = verify_encoder(fp32, model, TEXTS, (8, 16), FP32_BUDGET, item_vectors=vectors)
    assert report.passed
    batches = list(calibration_batches(model, TEXTS))
    quantized = quantize_encoder(fp32, int8, batches)
    assert any("bottleneck" in product.name for product in quantized.products)
    loose = INT8_BUDGET.model_copy(update={"mean_cosine": 0.98, "min_cosine": 0.95, "shape_cosine": 0.9})
    loose = loose.model_copy(update={"max_absolute": 0.2, "top_k_overlap": 0.5, "label_agreement": 0.5})
    assert verify_encoder(int8, model, TEXTS, (8, 16), loose, item_vectors=vectors).passed
