"""Decoders as encoders, and CLS pooling: text, loading, pooling, tuning and the way to an INT8 graph."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_encoders import MULTILINGUAL, byte_level_tokenizer, save_encoder
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaModel, RobertaConfig, RobertaModel

from export.errors import ExportError
from export.int8 import quantize_encoder
from export.onnx_graph import export_encoder
from export.report import FP32_BUDGET, INT8_BUDGET
from export.tokens import calibration_batches
from export.verify import verify_encoder
from serving.steps.tokenization import InstructionTokenizer
from training.cli import main
from training.encoder_source import locate_encoder
from training.errors import EncoderError
from training.model import InstructionModel
from training.run import Run
from training.tokenizer import load_tokenizer

LIMIT = 16
END = "<|endoftext|>"
BUCKETS = (8, 32)
LOOSE = INT8_BUDGET.model_copy(  # random weights lose more than trained ones; what must not depend on them stays
    update={
        "mean_cosine": 0.98,
        "min_cosine": 0.9,
        "shape_cosine": 0.9,
        "max_absolute": 0.3,
        "label_agreement": 0.5,
        "top_k_overlap": 0.5,
    }
)
any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.lists(st.sampled_from([*MULTILINGUAL, END, "\u0301", "\u200d", "\ufeff", " ", "\x00"]), max_size=6).map("".join),
)
example_based = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of encoder, and `declared`: an end of text that only tokenizer_config.json asks for."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("bert", "gpt2", "llama", "ended", "declared")}
    for kind in ("bert", "gpt2"):
        save_encoder(kind, made[kind])
    save_encoder("llama", made["llama"], dtype="bfloat16", end_of_text=True)
    byte_level_tokenizer(made["ended"], end_of_text=True)
    byte_level_tokenizer(made["declared"])
    declared = {"add_eos_token": True, "eos_token": {"content": END}}
    (made["declared"] / "tokenizer_config.json").write_text(json.dumps(declared))
    return made


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, InstructionTokenizer]]:
    """Each tokenizer as training loads it, and as the server loads what export saved of that."""
    pairs = {}
    for kind in ("gpt2", "ended", "declared"):
        tuned = load_tokenizer(folders[kind], LIMIT)
        saved = folders[kind] / "released.json"
        tuned.save(str(saved))
        pairs[kind] = (tuned, InstructionTokenizer(saved, [4, 8, LIMIT]))
    return pairs


@example_based
@given(st.lists(any_text, min_size=1, max_size=4))
def test_the_server_reads_any_text_as_training_did(pairs, texts):
    for kind, (tuned, served) in pairs.items():
        expected = [encoding.ids for encoding in tuned.encode_batch(texts)]
        found = served.encode(texts)
        assert found == expected
        input_ids, mask = served.pad(found)
        assert mask.sum(axis=1).tolist() == [len(ids) for ids in expected]
        assert input_ids.shape[1] in (4, 8, LIMIT)
        for ids in found:
            assert len(ids) <= LIMIT
            if kind != "gpt2":
                assert ids[-1] == tuned.token_to_id(END), "the end of the text was cut off"


@example_based
@given(any_text)
def test_no_language_is_harmed_by_a_byte_level_tokenizer(pairs, text):
    tuned, _ = pairs["gpt2"]
    whole = Tokenizer.from_str(tuned.to_str())
    whole.no_truncation()
    assert whole.decode(whole.encode(text).ids, skip_special_tokens=False) == text


def test_an_end_of_text_that_nobody_knows_is_refused(tmp_path):
    byte_level_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_eos_token": true, "eos_token": "</s>"}')
    with pytest.raises(EncoderError, match=r"eos_token '</s>' is not in tokenizer\.json"):
        load_tokenizer(tmp_path, 8)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(EncoderError, match=r"tokenizer_config\.json: cannot be read"):
        load_tokenizer(tmp_path, 8)


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "cls"), ("gpt2", "last"), ("llama", "last"), ("llama", "mean")])
def test_a_vector_is_its_text_alone(folders, kind, pooling):
    """Neither neighbours nor padding nor what was cut off has a part in it; a text without a token has none."""
    model = InstructionModel.from_folder(folders[kind], pooling, LIMIT, labels=3)
    assert model.encoder.dtype == torch.float32  # whatever the file holds
    texts = [*MULTILINGUAL, "a", "blue " * 50]
    together = model.embed(texts, batch_size=5)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert len(np.unique(together.round(3), axis=0)) == len(texts)
    ids = model.tokenizer.encode(texts[-1]).ids
    with torch.inference_mode():
        full, _ = model(torch.tensor([ids]), torch.ones(1, LIMIT, dtype=torch.int64))  # a mask of ones alone
        nothing, _ = model(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([[0] * 5, [1] * 5]))
    np.testing.assert_allclose(full[0], together[-1], atol=2e-6)
    assert (nothing[0] == 0).all()
    assert (nothing[1] != 0).any()


def test_the_last_token_is_what_is_pooled(folders):
    model = InstructionModel.from_folder(folders["gpt2"], "last", LIMIT, labels=3)
    ids = model.tokenizer.encode("a blue shirt").ids
    with torch.inference_mode():
        states = model.encoder(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = (states / states.norm()).numpy()
    np.testing.assert_allclose(model.embed(["a blue shirt", "x " * 40])[0], expected, atol=2e-6)


def test_a_language_model_and_its_decoder_are_the_same_encoder(folders, tmp_path):
    model = InstructionModel.from_folder(folders["gpt2"], "last", LIMIT, labels=3)
    whole = GPT2LMHeadModel(model.encoder.config)
    whole.transformer.load_state_dict(model.encoder.state_dict())
    whole.save_pretrained(tmp_path)
    byte_level_tokenizer(tmp_path)
    again = InstructionModel.from_folder(tmp_path, "last", LIMIT, labels=3)
    np.testing.assert_array_equal(again.embed(MULTILINGUAL), model.embed(MULTILINGUAL))


def test_what_does_not_fit_together_is_refused(folders, tmp_path):
    with pytest.raises(EncoderError, match=r"first token sees no other.*set last"):
        InstructionModel.from_folder(folders["gpt2"], "cls", LIMIT, labels=3)
    # RoBERTa has two positions fewer than its table has rows.
    tokens = byte_level_tokenizer(tmp_path).get_vocab_size()
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    RobertaModel(RobertaConfig(vocab_size=tokens, max_position_embeddings=34, **small)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="max_length is 34, the encoder takes 32"):
        InstructionModel.from_folder(tmp_path, "mean", 34, labels=3)
    model = InstructionModel.from_folder(tmp_path, "mean", 32, labels=3)
    assert np.isfinite(model.embed(["long " * 50])).all()


def test_weights_that_are_not_in_the_file_are_never_made_up(folders, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folders["gpt2"] / name).read_bytes())
    tensors = load_file(folders["gpt2"] / "model.safetensors")
    del tensors["h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"the weights lack h\.1\.mlp\.c_fc\.weight \(1 in all\)"):
        InstructionModel.from_folder(tmp_path, "last", LIMIT, labels=3)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "./no/such/folder"])
def test_a_name_that_cannot_be_had_says_what_else_there_is(monkeypatch, name):
    from huggingface_hub import constants  # noqa: PLC0415 - its settings are read when it is loaded

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # no one listens: as without a network
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(EncoderError, match="neither a local folder nor to be had from the hub") as caught:
            locate_encoder(type("Config", (), {"name": name, "sha256": None})())
    assert "package:<name>" in str(caught.value)
    assert "\n" not in str(caught.value)


def tune(config: Path, data: Path, var: Path, encoder: Path, *overrides: str) -> Run:
    arguments: list[Any] = ["--config", config, "--data", data, "--var", var, "--print-run", f"encoder.name={encoder}"]
    result = CliRunner().invoke(main, [str(argument) for argument in [*arguments, *overrides]])
    assert result.exit_code == 0, result.output
    return Run.open(result.stdout.strip())


@pytest.mark.parametrize(
    ("kind", "pooling", "products"),
    [
        ("gpt2", "last", 8),
        ("llama", "last", 14),
        ("albert", "mean", 13),  # its layers share their weights
        ("mpnet", "mean", 12),  # its attention is its own, as is DeBERTa's
        ("deberta-v2", "mean", 12),
    ],
)
def test_every_kind_is_tuned_and_becomes_an_int8_graph(kind, pooling, products, tiny_config, tiny_data, tmp_path):
    """LoRA finds GPT-2's own kind of linear layer too; INT8 holds every product with a weight."""
    folder = tmp_path / kind
    folder.mkdir()
    save_encoder(kind, folder)
    few = ("encoder_tuning.method=lora", "encoder_tuning.epochs=1", "encoder_tuning.rank=2", "training.epochs=5")
    run = tune(tiny_config, tiny_data, tmp_path / "var", folder, f"encoder.pooling={pooling}", *few)
    model = run.load_model()
    before = InstructionModel.from_folder(folder, pooling, model.max_length, labels=4)
    assert np.abs(before.embed(MULTILINGUAL) - model.embed(MULTILINGUAL)).max() > 1e-3
    assert model.encoder.state_dict().keys() == before.encoder.state_dict().keys()
    np.testing.assert_allclose(model.embed([item.text for item in run.catalogue()]), run.item_vectors(), atol=1e-5)

    texts = [*MULTILINGUAL, *(one.text for one in run.instructions()[:8])]
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_encoder(model, fp32)
    assert verify_encoder(fp32, model, texts, BUCKETS, FP32_BUDGET, item_vectors=run.item_vectors()).passed
    report = quantize_encoder(fp32, int8, calibration_batches(model, texts))
    assert [product.quantized for product in report.products] == [True] * products
    assert verify_encoder(int8, model, texts, BUCKETS, LOOSE, item_vectors=run.item_vectors()).passed


@pytest.mark.parametrize("asked", ["eager", "flash_attention_2", "flex_attention"])
def test_the_attention_that_a_config_asks_for_does_not_count(asked, folders, tmp_path):
    """It may need a GPU or a package that nobody has here."""
    folder = tmp_path / "encoder"
    shutil.copytree(folders["bert"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": asked}))
    model = InstructionModel.from_folder(folder, "mean", LIMIT, labels=2)
    assert model.encoder.config._attn_implementation == "sdpa"


def test_attention_with_a_window_is_refused_where_it_would_matter(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = LlamaConfig(vocab_size=300, **small)
    config.sliding_window = 16
    model = InstructionModel(
        LlamaModel(config),
        Tokenizer.from_str('{"model":{"type":"BPE","vocab":{},"merges":[]}}'),
        "last",
        max_length=17,
        labels=2,
    )
    with pytest.raises(ExportError, match=r"reaches 16 tokens .* Set encoder\.max_length to 16 or less"):
        export_encoder(model, tmp_path / "encoder.onnx")
