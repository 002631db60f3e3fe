"""Feedback in the client: checks, tensors, retries."""

import asyncio
import math
from fractions import Fraction

import numpy as np
import pytest
from client_helpers import STORE_FAILS, UNAVAILABLE, serving
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import AsyncClient, Client, Feedback, InvalidRequest, ProtocolError, ServerUnavailable
from instructrec_client._feedback import (
    FEEDBACK_INPUTS,
    MAX_FEEDBACK_ROWS,
    FeedbackRequest,
    check_feedback,
    decode_feedback,
    encode_feedback,
)
from test_client_wire import TEXT
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import deserialize_bytes_tensor

CLICK = Feedback("click", "sku-1")


def answer(*stored, name="stored", dtype=np.int32, datatype="INT32"):
    response = service_pb2.ModelInferResponse(model_name="feedback", model_version="1")
    response.outputs.add(name=name, datatype=datatype, shape=(len(stored), 1))
    response.raw_output_contents.append(np.array(stored, dtype).tobytes())
    return response


def test_each_event_has_an_id_and_a_time_of_its_own():
    first, second = Feedback("click", "sku-1"), Feedback("click", "sku-1")
    assert first.event_id != second.event_id
    assert 0 <= second.timestamp - first.timestamp < 60
    assert "anna" not in repr(Feedback("click", "sku-1", user_id="anna", instruction="anna's wish"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"event": "klick"}, "the event must be one of impression"),
        ({"event": "probe"}, "the event must be"),
        ({"item_id": ""}, "the item_id is empty"),
        ({"item_id": 7}, "the item_id must be a str, got int"),
        ({"event_id": " "}, "the event_id is empty"),
        ({"user_id": None}, "the user_id must be a str"),
        ({"instruction": "\ud800"}, "the instruction cannot be written as UTF-8"),
        ({"value": math.nan}, "the value must be a finite number"),
        ({"value": 1e39}, "the value must be a finite number"),
        ({"value": 10**400}, "the value must be a finite number"),
        ({"value": Fraction(-(10**400))}, "the value must be a finite number"),
        ({"timestamp": 10**400}, "the timestamp must be a finite number"),
        ({"value": "5"}, "the value must be a number, got str"),
        ({"value": True}, "the value must be a number, got bool"),
        ({"event": "rating"}, "a rating needs one"),
        ({"timestamp": math.inf}, "the timestamp must be a finite"),
        ({"timestamp": 1.8e12}, "the timestamp must be seconds"),
        ({"timestamp": -1}, "the timestamp must be seconds"),
    ],
)
def test_a_value_that_breaks_the_contract_is_named(changed, message):
    one = Feedback(**{"event": "click", "item_id": "sku-1", **changed})
    with pytest.raises(InvalidRequest, match=message):
        check_feedback([one])
    with pytest.raises(InvalidRequest, match=" of row 1 "):
        check_feedback([CLICK, one])


@pytest.mark.parametrize("events", [CLICK, "click", [CLICK, "click"]])
def test_what_is_no_feedback_is_refused(events):
    with pytest.raises(InvalidRequest, match="Feedback"):
        check_feedback(events)


EVENT = st.builds(
    Feedback,
    event=st.sampled_from(["impression", "click", "add", "purchase", "rating"]),
    item_id=TEXT,
    value=st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
    user_id=TEXT,
    instruction=TEXT,
    request_id=TEXT,
    release=TEXT,
    timestamp=st.floats(9.5e8, 4e9),
    event_id=TEXT,
)


@given(st.lists(EVENT, min_size=1, max_size=3), st.integers(0, 2))
def test_encode_loses_nothing(events, times):
    many = events * (times * 150 + 1)
    requests = list(encode_feedback("shop", many))
    assert [one.rows for one in requests[:-1]] == [MAX_FEEDBACK_ROWS] * (len(requests) - 1)
    columns = {name: [] for name in FEEDBACK_INPUTS}
    for one in requests:
        for tensor in one.inputs:
            assert tensor.datatype() == FEEDBACK_INPUTS[tensor.name()][0]
            assert list(tensor.shape()) == [one.rows, 1]
            raw = tensor._get_content()
            dtypes = {"FP32": np.float32, "INT64": np.int64}
            columns[tensor.name()] += (
                [cell.decode() for cell in deserialize_bytes_tensor(raw)]
                if tensor.datatype() == "BYTES"
                else np.frombuffer(raw, dtypes[tensor.datatype()]).tolist()
            )
    assert columns.pop("domain") == ["shop"] * len(many)
    assert columns.pop("timestamp") == [round(one.timestamp * 1_000) for one in many]
    for name, cells in columns.items():
        given = [getattr(one, name) for one in many]
        if cells:
            assert cells == [1.0 if cell is None else cell for cell in given], name
        else:  # left out, and so the server's default
            assert not any(cell or cell == 0.0 for cell in given), name


def test_what_no_event_of_a_request_has_is_left_out_of_it():
    def names(*events):
        [request] = encode_feedback("shop", events)
        return {tensor.name() for tensor in request.inputs}

    least = {"event_id", "domain", "event", "item_id", "timestamp"}
    assert names(CLICK, CLICK) == least
    assert names(CLICK, Feedback("rating", "sku-1", value=0.0, user_id="u")) == least | {"value", "user_id"}


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (answer(1, name="other"), "lacks output 'stored'"),
        (answer(1, dtype=np.int64, datatype="INT64"), "is INT64, the contract says INT32"),
        (answer(1, 0, 1), "has shape"),
        (answer(1, 2), "other numbers than 0 and 1"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_refused(response, message):
    with pytest.raises(ProtocolError, match=message):
        decode_feedback(InferResult(response), FeedbackRequest([], 2))


async def send(url, client, events, **settings):
    if client is Client:

        def call():
            with Client(url, **settings) as made:
                return made.feedback_batch(events)

        return await asyncio.to_thread(call)
    async with AsyncClient(url, **settings) as made:
        return await made.feedback_batch(events)


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_an_unavailable_server_is_asked_again_with_the_same_ids(client):
    with serving(UNAVAILABLE, UNAVAILABLE, answer(0)) as (playing, url):
        assert await send(url, client, [CLICK]) == [False]
        assert playing.rows == [1, 1, 1]
    with serving(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE) as (playing, url):
        with pytest.raises(ServerUnavailable):
            await send(url, client, [CLICK])
        assert len(playing.rows) == 3


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_a_store_that_fails_is_not_taken_for_a_server_that_is_not_there(client):
    with serving(STORE_FAILS, STORE_FAILS, STORE_FAILS) as (playing, url):
        with pytest.raises(
            ServerUnavailable, match=f"{url} answers that .*database is locked.*same ones again"
        ) as raised:
            await send(url, client, [CLICK])
        assert "check the address" not in str(raised.value)
        assert len(playing.rows) == 3


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_nothing_is_sent_where_there_is_nothing_or_something_wrong(client):
    with serving() as (playing, url):
        assert await send(url, client, []) == []
        with pytest.raises(InvalidRequest, match="row 1"):
            await send(url, client, [CLICK, Feedback("klick", "sku-1")])
        assert not playing.rows
