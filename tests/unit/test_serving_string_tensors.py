"""The fast conversions of strings against Triton's own: the same bytes, the same types."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import tritons_utilities

from serving.steps.string_tensors import deserialise, install, serialise

TRITONS = tritons_utilities()
strings = st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=500, max_size=530), st.just(b"ab\0")))


@pytest.fixture
def fast():
    module = tritons_utilities()
    install(module)
    return module


def array_of(values, shape):
    made = np.empty(len(values), dtype=np.object_)
    made[:] = values
    return made.reshape(shape)


@given(strings)
def test_strings_are_written_and_read_as_triton_does_it(values):
    row = array_of(values, (1, -1)) if values else np.empty((1, 0), dtype=np.object_)
    written = serialise(row)
    assert written == bytes(TRITONS.serialize_byte_tensor(row) or b"")
    encoded = np.frombuffer(written, dtype=np.uint8)
    found, expected = deserialise(encoded), TRITONS.deserialize_bytes_tensor(encoded)
    assert found.dtype == expected.dtype == np.object_
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist() == values


def test_what_is_put_in_the_place_of_tritons_functions_does_what_they_do(fast):
    for values in (
        array_of([b"one", "zwei \u00fc", 3, b""], (2, 2)),
        array_of([b"one", b"two", b"three", b"four"], (2, 2)).T,
        np.array([b"one", b"three"]),
        np.empty((1, 0), dtype=np.object_),
        np.zeros(3, np.float32),
    ):
        assert fast.serialize_byte_tensor(values) == TRITONS.serialize_byte_tensor(values)
    for name in ("bool", "int8", "int32", "int64", "uint8", "float16", "float32", "float64", "O", "S3", "complex64"):
        for _ in range(2):
            assert fast.numpy_to_triton_type(np.dtype(name)) == TRITONS.numpy_to_triton_type(np.dtype(name))


def test_a_second_model_in_the_process_changes_nothing(fast):
    before = fast.serialize_byte_tensor, fast.numpy_to_triton_type
    install(fast)
    assert (fast.serialize_byte_tensor, fast.numpy_to_triton_type) == before


@pytest.mark.parametrize("missing", [1, 5])
def test_strings_that_are_cut_short_are_refused_as_triton_refuses_them(missing):
    encoded = np.frombuffer(serialise(array_of([b"one", b"two"], (2,)))[:-missing], dtype=np.uint8)
    for read in (deserialise, TRITONS.deserialize_bytes_tensor):
        with pytest.raises((ValueError, struct.error)):
            read(encoded)
