"""What the feedback model takes and refuses: rows, fields, batches."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import Feedback
from instructrec_client._feedback import (
    FEEDBACK_EVENTS,
    FEEDBACK_INPUTS,
    FEEDBACK_MODEL,
    FEEDBACK_OUTPUTS,
    MAX_FEEDBACK_ROWS,
)
from instructrec_client._transport import STORE_FAILS
from serving_helpers import ROOT, Request, build_release, content_of, install_triton
from test_model_repository import described
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from export.model_config import committed_config
from feedback.errors import InvalidEventError
from feedback.events import KINDS, MAX_INSTRUCTION_BYTES, OPTIONAL, REQUIRED, read_events
from feedback.location import KEY_VARIABLE, URL_VARIABLE, Location
from feedback.reader import FeedbackReader
from loadtest.feedback_bench import _serialised, _serialised_sender
from loadtest.workload import Query
from serving import feedback_model
from serving.feedback_model import MODEL, stage_feedback
from serving.layout import Layout
from serving.live_repository import LiveRepository

NOW = 1_790_000_000.0
PRIVATE = "4111-private-1111"


def columns(rows=1, **changed):
    """The tensors of a request; `changed` are cells of the last row, or None for an input that is left out."""
    cells = {
        "event_id": b"e",
        "domain": b"shop",
        "event": b"click",
        "item_id": b"sku-1",
        "request_id": b"r-1",
        "user_id": b"anna",
        "instruction": b"a blue shirt",
        "value": np.float32(1),
        "timestamp": np.int64(NOW * 1_000),
        "release": b"12",
    }
    dtypes = {"value": np.float32, "timestamp": np.int64}
    made = {}
    for name, cell in cells.items():
        column = np.full((rows, 1), cell, dtype=dtypes.get(name, np.object_))
        if name == "event_id":
            column[:, 0] = [b"e-%d" % row for row in range(rows)]
        if name in changed:
            if changed[name] is None:
                continue
            column[-1, 0] = changed[name]
        made[name] = column
    return made


def read(**changed):
    return read_events(columns(**changed).get, now=lambda: NOW)


BAD = {
    "unknown event": ({"event": b"klick"}, "event: is none of impression, click"),
    "empty event": ({"event": b""}, "event"),
    "NaN": ({"value": np.nan}, "value: is not a finite number"),
    "infinite": ({"value": -np.inf}, "value"),
    "future": ({"timestamp": np.int64((NOW + 7_200) * 1_000)}, "timestamp: lies in the future"),
    "far future": ({"timestamp": np.iinfo(np.int64).max}, "timestamp"),
    "microseconds": ({"timestamp": np.int64(NOW * 1e6)}, "timestamp.*milliseconds"),
    "seconds": ({"timestamp": np.int64(NOW)}, "timestamp: lies before the year 2000; it counts milliseconds"),
    "negative time": ({"timestamp": np.iinfo(np.int64).min}, "timestamp"),
    "20 MB": (
        {"instruction": PRIVATE.encode() + b"x" * 20_000_000},
        "instruction: has 20,000,017 bytes, at most 16,384",
    ),
    "just too long": ({"instruction": b"x" * (MAX_INSTRUCTION_BYTES + 1)}, "instruction: has 16,385 bytes"),
    "not UTF-8": ({"instruction": PRIVATE.encode() + b"\xff"}, r"instruction: is not UTF-8 \(byte 17\)"),
    "NUL": ({"instruction": PRIVATE.encode() + b"\0"}, "instruction: holds a NUL"),
    "long user": ({"user_id": PRIVATE.encode() * 20}, "user_id: has 340 bytes, at most 256"),
    "no event id": ({"event_id": b""}, "event_id: is not 1 to 128"),
    "long event id": ({"event_id": b"x" * 129}, "event_id"),
    "mail as event id": ({"event_id": b"anna@example.com"}, "event_id"),
    "mail as request id": ({"request_id": b"anna@example.com"}, "request_id"),
    "line break": ({"event_id": b"a\n"}, "event_id"),
    "no item": ({"item_id": b" "}, "item_id: is empty"),
    "control character": ({"item_id": b"a\x1bb"}, "item_id"),
    "no domain": ({"domain": b""}, "domain"),
    "odd release": ({"release": b"12 or so"}, "release"),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_with_its_field_and_without_its_text(kind, rows):
    changed, message = BAD[kind]
    with pytest.raises(InvalidEventError, match=f"row {rows - 1}, {message}") as caught:
        read(rows=rows, **changed)
    assert "private" not in str(caught.value)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_required_is_named(name):
    with pytest.raises(InvalidEventError, match=f"input {name} is missing"):
        read(**{name: None})


def test_the_bytes_that_the_benchmark_sends_are_events():
    sent = [Feedback("click", f"sku-{n}", user_id="u", instruction="a blue shirt", release="3") for n in range(2)]
    request = service_pb2.ModelInferRequest.FromString(_serialised("shop", sent, b"id"))
    content = zip(request.inputs, request.raw_input_contents, strict=True)
    cells = {
        one.name: np.frombuffer(raw, "<i8") if one.datatype == "INT64" else deserialize_bytes_tensor(raw)
        for one, raw in content
    }
    events = read_events(cells.get)
    assert [(one.event_id, one.item_id) for one in events] == [("id-0", "sku-0"), ("id-1", "sku-1")]
    assert {(one.domain, one.user_id, one.instruction, one.release) for one in events} == {
        ("shop", "u", "a blue shirt", "3")
    }
    assert [one.timestamp for one in events] == [int(one.timestamp * 1_000) for one in sent]


def test_no_two_runs_of_the_benchmark_send_an_event_of_the_same_id(monkeypatch):
    """What they sent stays in the store, where an event that is known counts as a failure."""
    seen = []

    class Channel:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            pass

        def unary_unary(self, _):
            return self.call

        async def call(self, content, **_):
            request = service_pb2.ModelInferRequest.FromString(content)
            [ids] = [
                raw
                for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
                if one.name == "event_id"
            ]
            seen.extend(deserialize_bytes_tensor(ids))
            return service_pb2.ModelInferResponse(raw_output_contents=[np.ones(1, "<i4").tobytes()]).SerializeToString()

    monkeypatch.setattr("grpc.aio.insecure_channel", lambda *_, **__: Channel())

    async def runs():
        for _ in range(1_000):
            async with _serialised_sender("nobody", "shop", [Query(text="a blue shirt")], 1) as send:
                await send(0)
                await send(1)

    asyncio.run(runs())
    assert len(set(seen)) == 2_000


def test_what_is_optional_may_be_left_out():
    [event] = read(**dict.fromkeys(OPTIONAL))
    assert (event.value, event.timestamp) == (1.0, int(NOW * 1_000))
    assert not (event.user_id or event.instruction or event.request_id or event.release)
    with pytest.raises(InvalidEventError, match="row 0, value: is missing, and a rating needs one"):
        read(event=b"rating", value=None)


def test_an_event_does_not_show_a_persons_words():
    [event] = read(instruction=PRIVATE.encode())
    assert event.instruction == PRIVATE
    assert PRIVATE not in repr(event)
    assert "anna" not in repr(event)


@given(
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.floats(width=32),
    st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_is_sent_is_read_or_refused(event_id, item_id, instruction, value, timestamp):
    try:
        [event] = read(event_id=event_id, item_id=item_id, instruction=instruction, value=value, timestamp=timestamp)
    except InvalidEventError as error:
        assert str(error).startswith("row 0, ")
    else:
        assert event.item_id.encode() == item_id
        assert event.instruction.encode() == instruction
        assert np.isfinite(event.value)


def test_the_committed_config_has_the_contract_and_the_client_agrees():
    config = committed_config(MODEL)
    assert described(config.input) == FEEDBACK_INPUTS
    assert described(config.output) == FEEDBACK_OUTPUTS
    assert {tensor.name for tensor in config.input if tensor.optional} == set(OPTIONAL)
    assert {tensor.name for tensor in config.input} == {*OPTIONAL, *REQUIRED}
    assert config.max_batch_size == MAX_FEEDBACK_ROWS
    assert (FEEDBACK_MODEL, FEEDBACK_EVENTS) == (MODEL, KINDS)
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy"), "see docs/serving.md"


@pytest.fixture
def triton(monkeypatch):
    for name in (URL_VARIABLE, KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return install_triton(monkeypatch)


@pytest.fixture
def staged(tmp_path):
    layout = Layout(tmp_path / "var")
    stage_feedback(layout)
    return layout


@pytest.fixture
def model(triton, staged, monkeypatch):
    """The model as it lies in the live repository, its own copies of the packages included."""
    for name in [one for one in sys.modules if one.partition(".")[0] in {"feedback", "steps"}]:
        monkeypatch.delitem(sys.modules, name)
    path = staged.live / MODEL / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("feedback_model_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert Path(sys.modules["feedback.store"].__file__).is_relative_to(path.parent)
    made = module.TritonPythonModel()
    made.initialize(args(staged))
    yield made
    made.finalize()
    for name in [one for one in sys.modules if one.partition(".")[0] in {"feedback", "steps"}]:
        del sys.modules[name]


def args(layout):
    parameters = {"folder": {"string_value": str(layout.feedback)}}
    return {"model_config": json.dumps({"parameters": parameters}), "model_name": MODEL, "model_version": "1"}


def sent(number, **changed):
    rows = changed.pop("rows", 1)
    made = columns(rows=rows, **changed)
    if "event_id" not in changed:
        made["event_id"][:, 0] = [b"%d-%d" % (number, row) for row in range(rows)]
    return Request(**made)


def test_a_batch_is_answered_request_by_request(model, staged):
    requests = [sent(1), sent(2, rows=3), sent(3, event=b"klick"), sent(4, rows=2, value=np.nan), sent(1), sent(5)]
    responses = model.execute(requests)
    assert [response.error and response.error.code for response in responses] == [
        None,
        None,
        "INVALID_ARG",
        "INVALID_ARG",
        None,
        None,
    ]
    stored = [response.outputs["stored"] for response in responses if not response.error]
    assert [one.tolist() for one in stored] == [[[1]], [[1], [1], [1]], [[0]], [[1]]]
    assert all(one.dtype == np.int32 and one.flags.c_contiguous for one in stored)
    assert "row 1, value" in responses[3].error.message
    with FeedbackReader(Location(staged.feedback, {})) as reader:
        assert [one.event_id for one in reader.events("shop")] == ["1-0", "2-0", "2-1", "2-2", "5-0"]


def test_a_store_that_fails_is_said_to_all_and_tried_again(model, staged, triton):
    assert model.execute([sent(1)])[0].error is None
    model.store.close()
    content = Location(staged.feedback, {}).file.read_bytes()
    Location(staged.feedback, {}).file.write_bytes(b"no database" * 500)
    for _ in range(3):
        responses = model.execute([sent(2), sent(3, event=b"klick"), sent(4)])
        assert [response.error.code for response in responses] == ["UNAVAILABLE", "INVALID_ARG", "UNAVAILABLE"]
        assert "not a database" in responses[0].error.message
        assert STORE_FAILS in responses[0].error.message, "what the client knows it by"
    assert len(triton.logged) == 1, "said once, not with every batch"
    Location(staged.feedback, {}).file.write_bytes(content)
    assert model.execute([sent(1)])[0].outputs["stored"].tolist() == [[0]]
    assert "works again" in triton.logged[-1]


def test_the_model_loads_while_the_store_cannot_be_opened(model, staged):
    model.finalize()
    staged.feedback.rename(staged.var / "kept")
    staged.feedback.write_text("a file in the way")
    model.initialize(args(staged))
    assert model.execute([sent(1)])[0].error.code == "UNAVAILABLE"
    staged.feedback.unlink()
    (staged.var / "kept").rename(staged.feedback)
    assert model.execute([sent(1)])[0].outputs["stored"].tolist() == [[1]]


def test_staging_again_changes_nothing(staged):
    before = {path: path.stat().st_mtime_ns for path in staged.live.rglob("*")}
    assert not stage_feedback(staged)
    assert {path: path.stat().st_mtime_ns for path in staged.live.rglob("*") if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }


def test_a_publish_leaves_the_model_alone(staged):
    repository = LiveRepository(staged.live)
    kept = content_of(staged.live / MODEL)
    for number in (1, 2, 3):
        steps = dict.fromkeys(("tokenizer", "encoder", "head", "topk"), (number, f"content {number}"))
        release = build_release(staged.var / "releases" / "shop", number, steps)
        before = repository.live_release("shop")
        repository.stage(release)
        repository.switch(release)
        gone = repository.retire("shop", [one for one in (repository.live_release("shop"), before) if one])
        assert MODEL not in gone
        assert content_of(staged.live / MODEL) == kept


def test_other_code_becomes_the_next_version(staged, monkeypatch):
    source = staged.var / "source"
    (source / "1").mkdir(parents=True)
    for name in ("config.pbtxt", "1/model.py"):
        (source / name).write_text((ROOT / "model_repository" / MODEL / name).read_text() + "# other\n")
    monkeypatch.setattr(feedback_model, "SOURCE", source)
    assert stage_feedback(staged)
    config = feedback_model.read_config(staged.live / MODEL / "config.pbtxt")
    assert list(config.version_policy.specific.versions) == [2]
    assert (staged.live / MODEL / "2" / "model.py").read_text().endswith("# other\n")
    assert not stage_feedback(staged)


def test_a_staging_that_was_killed_is_done_again(staged):
    (staged.live / MODEL / "config.pbtxt").unlink()
    (staged.live / MODEL / ".incoming-1").mkdir()
    (staged.live / MODEL / "1" / "model.py").write_text("half")
    assert stage_feedback(staged)
    assert "class TritonPythonModel" in (staged.live / MODEL / "1" / "model.py").read_text()
    assert not list((staged.live / MODEL).glob(".incoming-*"))
