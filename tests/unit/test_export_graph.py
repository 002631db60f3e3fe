"""The encoder and head graphs: torch's numbers at every shape, the same bytes, and no trace of the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from export.agreement import encode
from export.errors import ExportError
from export.graph_file import load_graph, open_session, save_graph
from export.head_graph import IR_VERSION, OPSET, export_head
from export.onnx_graph import export_encoder
from export.tokens import pad, tokenize
from training.model import InstructionModel

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
ONE_LAYER = SMALL | {"num_hidden_layers": 1}


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(60)}, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def make(encoder: torch.nn.Module, pooling: str = "mean") -> InstructionModel:
    return InstructionModel(encoder, words(), pooling, max_length=24, labels=3)


def bert(layers: int = 2) -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(**SMALL | {"num_hidden_layers": layers}, max_position_embeddings=24, initializer_range=0.5)
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[InstructionModel, Path]:
    model = make(bert())
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    export_encoder(model, path)
    return model, path


def difference(model: InstructionModel, path: Path, ids: np.ndarray, mask: np.ndarray) -> float:
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()
    return float(np.abs(encode(open_session(path), (ids, mask)) - expected).max())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=24), min_size=1, max_size=9), st.integers(0, 24))
def test_equals_torch_at_every_shape(exported, rows, extra):
    longest = max(map(len, rows))
    batch = pad(rows, min(24, longest + extra))
    assert difference(*exported, *batch) < 1e-5


def test_signature_is_the_contract(exported):
    graph = load_graph(exported[1])
    assert graph.ir_version == IR_VERSION == 10
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    session = open_session(exported[1])
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "length"]),
        ("attention_mask", "tensor(int64)", ["batch", "length"]),
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("instruction_vector", "tensor(float)", ["batch", 16])
    ]


def test_vectors_have_length_one_and_padding_alone_gives_zeros(exported):
    session = open_session(exported[1])
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    mask = np.array([[1] * 6, [0] * 6], dtype=np.int64)
    text, nothing = encode(session, (ids, mask))
    assert np.linalg.norm(text) == pytest.approx(1, abs=1e-6)
    # All tokens are masked equally, so attention still works; the pool then has nothing to add up.
    assert (nothing == 0).all()


def test_same_weights_same_bytes_and_no_machine_path(exported, tmp_path):
    path = exported[1]
    export_encoder(make(bert()), tmp_path / "again.onnx")
    content = path.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    for trace in (b"site-packages", b".py", b"stack_trace", str(Path.home()).encode(), str(Path.cwd()).encode()):
        assert trace not in content
    assert [entry.name for entry in path.parent.iterdir()] == ["encoder.onnx"]  # one file, nothing temporary


# Causal attention with fewer key heads than query heads, and last-token pooling, are in test_encoder_kinds.py.
@pytest.mark.parametrize("kind", ["cls", "roberta"])
def test_other_encoders(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "cls":
        model = make(bert(layers=1), "cls")
    else:  # its positions start behind the padding index
        model = make(RobertaModel(RobertaConfig(**ONE_LAYER, max_position_embeddings=30, initializer_range=0.5)))
    export_encoder(model, tmp_path / "encoder.onnx")
    for batch in (pad([[5]]), pad([[5, 6, 7, 8], [9], [3, 4]], 9), pad([list(range(2, 26))] * 3)):
        assert difference(model, tmp_path / "encoder.onnx", *batch) < 1e-5


def test_unknown_pooling_and_encoder_are_refused(tmp_path):
    with pytest.raises(ExportError, match="Pooling 'max' cannot be exported"):
        export_encoder(make(bert(), "max"), tmp_path / "encoder.onnx")
    translator = T5Model(T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    model = make(translator)
    model.encoder.train()
    before = model.encoder.config._attn_implementation
    with pytest.raises(ExportError, match="An encoder of type 't5' could not be traced"):
        export_encoder(model, tmp_path / "encoder.onnx")
    assert model.encoder.training  # and it is left as it was
    assert model.encoder.config._attn_implementation == before
    assert list(tmp_path.iterdir()) == []


def test_head_equals_the_linear_layer(tmp_path):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(5, 16)).astype(np.float32)
    bias = generator.normal(size=5).astype(np.float32)
    export_head(weight, bias, tmp_path / "head.onnx")
    session = open_session(tmp_path / "head.onnx")
    for batch in (1, 7):
        vectors = generator.normal(size=(batch, 16)).astype(np.float32)
        logits = session.run(["logits"], {"instruction_vector": vectors})[0]
        np.testing.assert_allclose(logits, vectors @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (np.zeros((3, 4), np.float32), np.zeros(4, np.float32), r"\(3, 4\) and bias \(4,\)"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), "must have shapes"),
        (np.full((3, 4), np.nan, np.float32), np.zeros(3, np.float32), "not finite"),
    ],
)
def test_bad_head_is_refused(weight, bias, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_head(weight, bias, tmp_path / "head.onnx")
    assert list(tmp_path.iterdir()) == []


def test_graph_files_that_are_not(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        load_graph(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="not an ONNX graph"):
        load_graph(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="refuses the graph"):
        open_session(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="cannot be written"):
        save_graph(onnx.ModelProto(), tmp_path / "empty.onnx")
    export_head(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), tmp_path / "head.onnx")
    with pytest.raises(ExportError, match=r"head\.onnx: cannot be written"):
        save_graph(load_graph(tmp_path / "head.onnx"), tmp_path / "text.onnx" / "head.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["head.onnx", "text.onnx"]


def test_tokens_are_cut_at_the_limit_and_padded_on_the_right():
    rows = tokenize(make(bert()), ["w1 w2 w3", "w4 " * 30])
    assert rows == [[1, 2, 3], [4] * 24]
    ids, mask = pad(rows, 5)
    assert ids.tolist() == [[1, 2, 3, 0, 0], [4] * 5]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
