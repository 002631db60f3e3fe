"""Tensors out, recommendations in: the contract, without a server."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import Item, ProtocolError, Reason, Recommendations
from instructrec_client._wire import INPUTS, MAX_BATCH_SIZE, OUTPUTS, WireRequest, decode, encode
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
FLOAT = st.floats(width=32, allow_nan=False)
ITEM = st.builds(Item, TEXT, TEXT, TEXT, FLOAT, st.builds(Reason, FLOAT, FLOAT, FLOAT, FLOAT))


@st.composite
def answers(draw):
    """Answers of one response: as many items in each row."""
    items = draw(st.integers(0, 4))
    rows = st.builds(
        Recommendations,
        st.lists(ITEM, min_size=items, max_size=items).map(tuple),
        release=TEXT,
        model_version=st.just("7"),
    )
    return draw(st.lists(rows, min_size=1, max_size=4))


def arrays_of(rows):
    """Return the output tensors that say the same as the recommendations."""
    found = len(rows[0])
    texts = {
        name: np.array([[getattr(item, name).encode() for item in row] for row in rows], dtype=object)
        for name in ("item_id", "title", "label")
    }
    return {
        **{name: values.reshape(len(rows), found) for name, values in texts.items()},
        "score": np.array([[item.score for item in row] for row in rows], np.float32).reshape(len(rows), found),
        "reason": np.array(
            [
                [[vars(item.reason)[term] for term in ("instruction", "label", "history", "prior")] for item in row]
                for row in rows
            ],
            np.float32,
        ).reshape(len(rows), found, 4),
        "release": np.array([[row.release.encode()] for row in rows], dtype=object),
    }


def result_of(arrays, datatypes=None):
    """Return what tritonclient makes of a response with these tensors."""
    response = service_pb2.ModelInferResponse(model_name="ecommerce", model_version="7")
    for name, values in arrays.items():
        datatype = (datatypes or {}).get(name, OUTPUTS[name][0] if name in OUTPUTS else "FP32")
        response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if values.dtype == object:
            serialized = serialize_byte_tensor(values)
            response.raw_output_contents.append(serialized.item() if serialized.size else b"")
        else:
            response.raw_output_contents.append(values.tobytes())
    return InferResult(response)


ONE = Recommendations(
    (Item("p1", "Shirt", "Shirts", 1.0, Reason(0.5, 0.25, 0.25, 0.0)),), release="3", model_version="7"
)
ASKED = WireRequest([], rows=1, top_k=10)


@given(answers())
def test_decode_gives_back_what_was_encoded(rows):
    assert decode(result_of(arrays_of(rows)), WireRequest([], len(rows), top_k=4)) == rows


@given(
    st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=4)), min_size=1, max_size=2 * MAX_BATCH_SIZE + 3),
    st.integers(1, 100),
    st.booleans(),
)
def test_encode_loses_nothing(rows, top_k, with_histories):
    texts, histories = [text for text, _ in rows], [history for _, history in rows]
    requests = list(encode(texts, histories if with_histories else None, top_k))
    assert [request.rows for request in requests[:-1]] == [MAX_BATCH_SIZE] * (len(requests) - 1)
    assert len(requests) == math.ceil(len(rows) / MAX_BATCH_SIZE)
    seen_texts, seen_histories = [], []
    for request in requests:
        tensors = {tensor.name(): tensor for tensor in request.inputs}
        assert {name: tensor.datatype() for name, tensor in tensors.items()} == {k: v[0] for k, v in INPUTS.items()}
        assert list(tensors["instruction"].shape()) == list(tensors["top_k"].shape()) == [request.rows, 1]
        assert np.frombuffer(tensors["top_k"]._get_content(), np.int32).tolist() == [top_k] * request.rows
        seen_texts += [value.decode() for value in deserialize_bytes_tensor(tensors["instruction"]._get_content())]
        flat = deserialize_bytes_tensor(tensors["history"]._get_content())
        entries = flat.reshape(list(tensors["history"].shape())).tolist()
        seen_histories += [[entry.decode() for entry in row] for row in entries]
    assert seen_texts == texts
    for seen, history in zip(seen_histories, histories if with_histories else [[]] * len(rows), strict=True):
        assert seen[: len(history)] == history
        assert set(seen[len(history) :]) <= {""}


def test_no_history_is_an_empty_tensor_not_a_missing_one():
    (request,) = encode(["a shirt"], None, 10)
    history = next(tensor for tensor in request.inputs if tensor.name() == "history")
    assert list(history.shape()) == [1, 0]
    assert history._get_content() == b""


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_missing_output_is_named(name):
    arrays = arrays_of([ONE])
    del arrays[name]
    with pytest.raises(ProtocolError, match=f"lacks output '{name}'"):
        decode(result_of(arrays), ASKED)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_of_another_type_is_named(name):
    with pytest.raises(ProtocolError, match=f"output '{name}' is INT64, the contract says {OUTPUTS[name][0]}"):
        decode(result_of(arrays_of([ONE]), {name: "INT64"}), ASKED)


@pytest.mark.parametrize("name", OUTPUTS)
def test_rows_that_were_not_asked_for_are_refused(name):
    arrays = arrays_of([ONE])
    arrays[name] = np.concatenate([arrays[name], arrays[name]])
    with pytest.raises(ProtocolError, match=f"output '{name}' has shape"):
        decode(result_of(arrays), ASKED)


@pytest.mark.parametrize("name", ["item_id", "title", "label", "reason"])
def test_outputs_must_hold_as_many_items_as_there_are_scores(name):
    arrays = arrays_of([ONE])
    arrays[name] = np.concatenate([arrays[name], arrays[name]], axis=1)
    with pytest.raises(ProtocolError, match=f"output '{name}' holds 2 items, 'score' holds 1"):
        decode(result_of(arrays), ASKED)


def test_more_items_than_asked_for_are_refused():
    rows = [Recommendations(ONE.items * 11, release="3", model_version="7")]
    with pytest.raises(ProtocolError, match="returned 11 items where 10 were asked for"):
        decode(result_of(arrays_of(rows)), ASKED)


@pytest.mark.parametrize("name", ["score", "title"])
def test_cut_off_bytes_are_refused(name):
    result = result_of(arrays_of([ONE]))
    response = result.get_response()
    index = [output.name for output in response.outputs].index(name)
    response.raw_output_contents[index] = response.raw_output_contents[index][:-1]
    with pytest.raises(ProtocolError, match=f"output '{name}'"):
        decode(result, ASKED)


@pytest.mark.parametrize("name", ["item_id", "title", "label", "release"])
def test_text_that_is_not_utf8_is_refused(name):
    arrays = arrays_of([ONE])
    arrays[name][0, 0] = b"caf\xe9"
    with pytest.raises(ProtocolError, match=f"output '{name}' is not UTF-8"):
        decode(result_of(arrays), ASKED)


def test_recommendations_are_a_sequence_that_reads_well():
    rows = Recommendations(ONE.items * 12, release="3", model_version="7")
    assert len(rows) == 12
    assert rows[0] == ONE.items[0] == rows[-1]
    assert rows[:2] == ONE.items * 2
    assert list(rows) == list(rows.items)
    assert rows[0].reason.total == pytest.approx(rows[0].score)
    assert repr(rows).splitlines()[:2] == [
        "<Recommendations: 12 items from release 3",
        "  1. Shirt [Shirts] p1 1.000",
    ]
    assert repr(rows).endswith("… and 2 more>")
    assert repr(ONE).startswith("<Recommendations: 1 item from release 3")
