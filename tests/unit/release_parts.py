"""A release whose configs and head are real, whichever way it is served; its other files are a few letters, or real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from serving_helpers import catalogue_of, manifest_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from export.head_graph import export_head
from export.model_config import FUSED, STEPS, ConfigWriter
from export.settings import ServingSettings
from export.shared_steps import SHARED, name_by_content
from serving.manifest import Step
from serving.releases import Release
from serving.steps.catalogue import ScoreWeights
from serving.steps.text_encoder import Head

WEIGHT = np.arange(24, dtype=np.float32).reshape(3, 8)
BIAS = np.array([1, 2, 3], dtype=np.float32)
INPUTS = ("input_ids", "attention_mask")
ITEMS = {"catalogue.json": "{}", "item_vectors.npy": "vectors", "index.faiss": "codes"}


def release_of(folder: Path, mode: str, *, working: bool = False, **settings: Any) -> Release:
    """Write release 7 of the domain `shop`, whose texts are cut to 40 tokens.

    Args:
        folder: of the domain's releases.
        mode: "ensemble" or "fused".
        working: whether graph, tokenizer and items are real, if small.
        settings: others of the `serving` section.
    """
    root = folder / "7"
    serving = ServingSettings.model_validate({"mode": mode} | settings)
    configs = ConfigWriter("shop", serving, (16, 40), 8, 3)
    steps = {}
    for step in STEPS if mode == "ensemble" else (FUSED,):
        versioned = root / "models" / f"shop_{step}" / "5"
        versioned.mkdir(parents=True)
        (versioned.parent / "config.pbtxt").write_text(configs.step(step))
        steps[step] = Step(model=f"shop_{step}", version=5, digest=step)
        if step in {"encoder", FUSED}:
            (versioned / "model.onnx").write_bytes(mean_of_words() if working else b"graph")
        if step in {"tokenizer", FUSED}:
            (versioned / "tokenizer.json").write_text(words() if working else "tokens")
        if step in {"topk", FUSED}:
            for name, text in ITEMS.items() if not working else ():
                (versioned / name).write_text(text)
            if working:
                vectors, weights = np.random.default_rng(1).normal(size=(50, 8)), ScoreWeights(1, 1, 1, 1, 1)
                catalogue_of(vectors, np.zeros(50), np.zeros(50), weights, labels=3).write(versioned)
            (versioned / "steps").mkdir()
            (versioned / "steps" / "old.py").write_text("")
        if step == "head":
            export_head(WEIGHT, BIAS, versioned / "model.onnx")
        if step == FUSED:
            Head(WEIGHT, BIAS).write(versioned)
        if serving.share_steps and step in SHARED:
            versioned.rename(versioned.with_name("new"))
            steps[step] = name_by_content(step, versioned.parent)
    manifest_of(root, "shop", 7, steps).write(root)
    return Release(root)


def words() -> str:
    """A tokenizer that knows the words w0 to w99, and cuts texts to seven of them unless it is told otherwise."""
    vocabulary = {f"w{number}": number for number in range(100)} | {"?": 100}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9)
    return tokenizer.to_str()


def mean_of_words() -> bytes:
    """An encoder's graph whose vector is the mean of its words' vectors."""
    table = np.random.default_rng(0).normal(size=(101, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["masks"]),
        helper.make_node("Mul", ["words", "masks"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "length"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["masks", "length"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["instruction_vector"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"]) for name in INPUTS]
    output = helper.make_tensor_value_info("instruction_vector", TensorProto.FLOAT, ["rows", 8])
    constants = {"table": table, "last": np.array([2]), "length": np.array([1])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "encoder", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
