"""A graph as something to embed with: what its cache depends on, and what it says of files that are no good."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import words_model

from export.errors import ExportError
from export.graph_encoder import GraphEncoder
from export.onnx_graph import export_encoder

TEXTS = ["w3 w4", "w5 w6 w7 w8 w9", "w3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("files"), words_model()
    export_encoder(model, folder / "model.onnx")
    model.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def own_files(files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files, tmp_path / "files"))


def open_in(folder: Path, max_length: int = 16, pooling: str = "mean") -> GraphEncoder:
    graph, tokenizer = folder / "model.onnx", folder / "tokenizer.json"
    return GraphEncoder(graph, tokenizer, hidden_size=32, pooling=pooling, max_length=max_length)


def test_vectors_are_those_of_torch_and_are_kept(files: Path, tmp_path: Path) -> None:
    encoder = open_in(files)
    vectors = encoder.cache(tmp_path).embed(encoder, TEXTS, batch_size=2)
    np.testing.assert_allclose(vectors, words_model().embed(TEXTS), atol=1e-5)
    assert set(open_in(files).cache(tmp_path).read(TEXTS, 2)) == set(TEXTS)
    assert encoder.embed([]).shape == (0, 32)


def test_other_files_settings_and_code_have_another_cache(
    own_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path() -> Path:
        return open_in(own_files).cache(tmp_path).path

    found = {path(), open_in(own_files, max_length=8).cache(tmp_path).path}
    found.add(open_in(own_files, pooling="cls").cache(tmp_path).path)
    tokenizer = own_files / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("w3", "w98", 1), encoding="utf-8")
    found.add(path())
    graph = own_files / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    found.add(path())
    monkeypatch.setattr("export.graph_encoder.SERVED_BY", ())
    found.add(path())
    monkeypatch.setattr("export.graph_encoder.library_version", lambda name: f"{name} of tomorrow")
    found.add(path())
    assert len(found) == 7
    assert path() in found


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("model.onnx", b"graph", r"model\.onnx: onnxruntime refuses the graph"),
        ("tokenizer.json", b"{", r"tokenizer\.json: no tokenizer: .*; export the release again"),
    ],
)
def test_a_damaged_file_is_named(own_files: Path, name: str, content: bytes, problem: str) -> None:
    (own_files / name).write_bytes(content)
    with pytest.raises(ExportError, match=problem):
        open_in(own_files).embed(TEXTS)


def test_a_missing_file_is_named(own_files: Path, tmp_path: Path) -> None:
    (own_files / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer\.json: cannot be read: No such file.*; export the release again"):
        open_in(own_files).cache(tmp_path)
