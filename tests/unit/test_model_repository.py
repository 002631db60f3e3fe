"""The committed model repository: the contract, the edges between the steps, and what the steps may import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from instructrec_client._validation import MAX_TOP_K as CLIENT_MAX_TOP_K
from instructrec_client._wire import INPUTS, MAX_BATCH_SIZE, OUTPUTS
from serving_helpers import ROOT

from export.model_config import FUSED, STEPS, committed_config
from export.settings import ServingSettings
from serving.feedback_model import STEPS_USED
from serving.live_repository import format_config, parse_config
from serving.steps.ranking import MAX_TOP_K

CONTRACT_INPUTS = {"instruction": ("BYTES", (1,)), "history": ("BYTES", (-1,)), "top_k": ("INT32", (1,))}
CONTRACT_OUTPUTS = {
    "item_id": ("BYTES", (-1,)),
    "title": ("BYTES", (-1,)),
    "label": ("BYTES", (-1,)),
    "score": ("FP32", (-1,)),
    "reason": ("FP32", (-1, 4)),
    "release": ("BYTES", (1,)),
}
"""DESIGN's tables, written down once more: this is what other services are built against."""


def described(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    names = {"STRING": "BYTES"}
    types = {tensor.name: type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type for tensor in tensors}
    kinds = {one.name: types[one.name].values_by_number[one.data_type].name.removeprefix("TYPE_") for one in tensors}
    return {one.name: (names.get(kinds[one.name], kinds[one.name]), tuple(one.dims)) for one in tensors}


def check_edges(ensemble: Any, steps: dict[str, Any]) -> None:
    """Every step's input comes from the ensemble's or an earlier step's output of the same dtype and dims."""
    known = described(ensemble.input)
    for entry in ensemble.ensemble_scheduling.step:
        step = steps[entry.model_name]
        inputs, outputs = described(step.input), described(step.output)
        assert set(entry.input_map) == set(inputs), entry.model_name
        assert set(entry.output_map) == set(outputs), entry.model_name
        for name, tensor in entry.input_map.items():
            assert known[tensor] == inputs[name], (entry.model_name, name)
        for name, tensor in entry.output_map.items():
            assert tensor not in known, tensor
            known[tensor] = outputs[name]
        assert step.max_batch_size == ensemble.max_batch_size
    for name, description in described(ensemble.output).items():
        assert known[name] == description, name


@pytest.mark.parametrize("name", [*STEPS, FUSED, "ensemble", "feedback"])
def test_every_config_parses_and_is_named_after_its_folder(name):
    config = committed_config(name)
    assert config.name == name
    assert config.max_batch_size >= 32
    assert parse_config(format_config(config)) == config
    assert bool(config.backend) != bool(config.platform)


def test_the_folders_are_the_steps_and_the_ensemble():
    found = {path.parent.name for path in (ROOT / "model_repository").glob("*/config.pbtxt")}
    assert found == {*STEPS, FUSED, "ensemble", "feedback"}
    for name in (*STEPS, FUSED):
        is_python = committed_config(name).backend == "python"
        assert (ROOT / "model_repository" / name / "1" / "model.py").is_file() == is_python


def test_the_steps_fit_each_other():
    ensemble = committed_config("ensemble")
    assert ensemble.platform == "ensemble"
    assert [entry.model_name for entry in ensemble.ensemble_scheduling.step] == list(STEPS)
    check_edges(ensemble, {name: committed_config(name) for name in STEPS})


def test_the_ensemble_has_the_wire_contract_and_the_client_agrees():
    ensemble = committed_config("ensemble")
    assert described(ensemble.input) == CONTRACT_INPUTS == INPUTS
    assert described(ensemble.output) == CONTRACT_OUTPUTS == OUTPUTS
    assert [tensor.name for tensor in ensemble.output] == list(OUTPUTS)
    assert ensemble.max_batch_size >= MAX_BATCH_SIZE >= 32
    assert MAX_TOP_K == CLIENT_MAX_TOP_K == 100


def test_the_fused_step_has_the_whole_wire_contract():
    fused = committed_config(FUSED)
    assert described(fused.input) == CONTRACT_INPUTS
    assert described(fused.output) == CONTRACT_OUTPUTS


def test_only_the_ragged_history_may_differ_within_a_batch():
    ragged = {
        (name, tensor.name)
        for name in (*STEPS, FUSED)
        for tensor in committed_config(name).input
        if tensor.allow_ragged_batch
    }
    assert ragged == {("topk", "history"), (FUSED, "history")}


def test_no_step_has_a_queue_policy():
    """With one, Triton 2.51 stalls requests for up to 500 ms (docs/serving.md)."""
    for name in (*STEPS, FUSED):
        batching = committed_config(name).dynamic_batching
        assert not batching.HasField("default_queue_policy"), name
        assert not batching.priority_queue_policy, name


def test_every_step_batches_and_starts_one_cpu_instance_with_one_thread():
    for name in (*STEPS, FUSED):
        config = committed_config(name)
        assert config.HasField("dynamic_batching"), name
        assert [(group.kind, group.count) for group in config.instance_group] == [
            (config.instance_group[0].KIND_CPU, 1)
        ]
        if config.backend == "onnxruntime":
            assert config.parameters["intra_op_thread_count"].string_value == "1"
            assert config.default_model_filename == "model.onnx"


def test_what_is_committed_is_what_a_release_gets_by_default():
    settings, tokenizer = ServingSettings(), committed_config("tokenizer")
    assert tokenizer.max_batch_size == settings.max_batch_size
    assert tokenizer.parameters["length_buckets"].string_value == ",".join(map(str, settings.length_buckets))
    encoder = committed_config("encoder")
    assert encoder.parameters["intra_op_thread_count"].string_value == str(settings.encoder_threads)
    assert encoder.instance_group[0].count == settings.encoder_instances


SERVER_SIDE = sorted(
    path
    for folder in ("serving/steps", "serving/engines", "serving/backends", "model_repository")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SERVER_SIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_server_side_code_imports_only_what_a_stub_has(path):
    allowed = {"numpy", "tokenizers", "onnxruntime", "openvino", "triton_python_backend_utils", "steps", "engines"}
    if path.name == "item_index.py":  # opened only where a catalogue has an approximate index
        allowed |= {"faiss"}
    if path.parts[-3] == "feedback":  # its own room's, which has SQLAlchemy besides
        allowed = {"numpy", "triton_python_backend_utils", "steps", "feedback"}
    assert imported(path) <= set(sys.stdlib_module_names) | allowed


def test_the_feedback_model_carries_every_step_that_its_steps_import():
    for name in STEPS_USED:
        for node in ast.walk(ast.parse((ROOT / "serving" / "steps" / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                wanted = [node.module] if node.module else [alias.name for alias in node.names]
                assert {f"{one}.py" for one in wanted} <= set(STEPS_USED), name


def test_the_import_check_looks_at_the_code():
    assert len(SERVER_SIDE) >= 9
    assert "tokenizers" in imported(ROOT / "serving" / "steps" / "tokenization.py")


@pytest.mark.parametrize(
    "module",
    [
        "serving.steps.ranking",
        "serving.steps.tokenization",
        "serving.steps.recommendation",
        "serving.steps.text_encoder",
    ],
)
def test_importing_a_step_loads_nothing_heavy(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    assert not loaded & {"torch", "transformers", "pydantic", "click", "pandas", "scipy", "tritonclient", "onnxruntime"}
