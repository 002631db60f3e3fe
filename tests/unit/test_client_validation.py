"""What the client refuses by itself: nothing listens at its address."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import AsyncClient, Client, InvalidRequest, ServerUnavailable
from instructrec_client._validation import check_request

from serving.steps.tokenization import is_blank

NOBODY = "127.0.0.1:1"


def refusal(*arguments, batch=False, **keywords):
    """Return the message with which both twins refuse a call."""
    name = "recommend_batch" if batch else "recommend"
    with Client(NOBODY, retries=0) as client, pytest.raises(InvalidRequest) as blocking:
        getattr(client, name)(*arguments, **keywords)

    async def ask():
        async with AsyncClient(NOBODY, retries=0) as client:
            await getattr(client, name)(*arguments, **keywords)

    with pytest.raises(InvalidRequest) as awaited:
        asyncio.run(ask())
    assert str(blocking.value) == str(awaited.value)
    return str(blocking.value)


@pytest.mark.parametrize("k", [0, -1, 101, 10**12])
def test_k_out_of_range(k):
    assert refusal("a shirt", k=k) == f"k must be from 1 to 100, got {k}"


@pytest.mark.parametrize("k", [True, False, 10.0, "10", None])
def test_k_of_another_type(k):
    assert refusal("a shirt", k=k) == f"k must be an int from 1 to 100, got {type(k).__name__}"


@pytest.mark.parametrize("instruction", ["", "   ", "\n\t", "\0", "\u200b", "\u2060\ufeff", "\u0301", "\ue000\ufffd"])
def test_empty_instruction(instruction):
    assert refusal(instruction) == "the instruction is empty: say what is wanted"


@given(st.text(st.characters(exclude_categories=["Cs"], include_characters="\u200b\u0301\ufffd "), max_size=3))
def test_the_client_refuses_as_blank_what_the_server_would(instruction):
    try:
        check_request([instruction], None, 1)
        is_refused = False
    except InvalidRequest:
        is_refused = True
    assert is_refused == is_blank(instruction)


@pytest.mark.parametrize("instruction", [None, b"a shirt", 3])
def test_instruction_of_another_type(instruction):
    assert refusal(instruction) == f"the instruction must be a str, got {type(instruction).__name__}"


def test_half_a_surrogate_pair_is_no_text():
    assert "character 2 is half of a surrogate pair" in refusal("a \ud83d shirt")


@pytest.mark.parametrize("history", ["p1,p2", b"p1", None, {"p1"}, 3])
def test_history_must_be_a_sequence(history):
    message = refusal("a shirt", history=history)
    assert message.startswith(f"the history must be a sequence of item ids, got {type(history).__name__}")


@pytest.mark.parametrize("entry", [None, 7, b"p2"])
def test_history_entries_must_be_text(entry):
    assert (
        refusal("a shirt", history=["p1", entry]) == f"the history, entry 1, must be a str, got {type(entry).__name__}"
    )


def test_batch_errors_name_the_row():
    assert refusal(["a", "b", ""], batch=True) == "the instruction of row 2 is empty: say what is wanted"
    assert "the history of row 1, entry 0," in refusal(["a", "b"], histories=[[], [1]], batch=True)


def test_batch_needs_a_sequence_and_a_history_each():
    assert "pass a list" in refusal("a shirt", batch=True)
    assert "pass a list" in refusal(["a"], histories="p1", batch=True)
    assert refusal(["a", "b"], histories=[[]], batch=True).startswith("1 histories for 2 instructions")


@given(
    st.text(min_size=1).filter(lambda text: not is_blank(text)), st.lists(st.text(), max_size=5), st.integers(1, 100)
)
def test_what_the_contract_allows_is_sent(text, history, k):
    with Client(NOBODY, retries=0) as client, pytest.raises(ServerUnavailable):
        client.recommend(text, history=history, k=k)


@given(st.text(alphabet=st.characters(categories=["Cs"]), min_size=1))
def test_refusals_never_repeat_what_was_said(text):
    message = refusal("my secret is " + text)
    assert "secret" not in message


def test_no_instructions_no_request():
    with Client(NOBODY) as client:
        assert client.recommend_batch([]) == []


@pytest.mark.parametrize("timeout", [0, -3, float("nan"), "1", 9e9, 1e13, 10**400])
def test_a_deadline_is_above_zero(timeout):
    with Client(NOBODY) as client, pytest.raises(ValueError, match="seconds above 0"):
        client.recommend("a shirt", timeout=timeout)
