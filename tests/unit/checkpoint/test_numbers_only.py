"""Values that are not numbers are found by their bits, in every type that carries weights."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.compare import assert_same_bits
from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.numbers_only import numbers_only, refuse_non_numbers

LARGEST = {DType.F32: 0x7F7F_FFFF, DType.F16: 0x7BFF, DType.BF16: 0x7F7F, DType.U8: 0x7E}
CHUNK = 1 << 18


@pytest.mark.parametrize("dtype", LARGEST)
def test_largest_number_of_each_sign_passes_and_what_follows_it_does_not(dtype: DType) -> None:
    word = {4: np.uint32, 2: np.uint16, 1: np.uint8}[dtype.itemsize_bytes]
    sign = 1 << (8 * dtype.itemsize_bytes - 1)
    bits = np.full((2, CHUNK), LARGEST[dtype], word)
    bits[1] |= word(sign)
    values = bits.view(dtype.storage_name)
    assert_same_bits(numbers_only("w", lambda _: values)(dtype), values)
    bits[0, CHUNK - 1] += word(1)
    bits[1, 3] += word(1)
    with pytest.raises(CheckpointError) as caught:
        refuse_non_numbers(values, dtype, "w")
    assert caught.value.where == f"w[0, {CHUNK - 1}]"
    assert caught.value.got == f"2 of {2 * CHUNK} are NaN or infinite"


def test_tensor_of_nothing_but_nan_is_refused_in_little_memory() -> None:
    values = np.full(4 * CHUNK, 0x7FC0, np.uint16)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"{values.size} of {values.size}"):
            refuse_non_numbers(values, DType.BF16, "w")
        assert tracemalloc.get_traced_memory()[1] < values.nbytes
    finally:
        tracemalloc.stop()


def test_integers_and_empty_tensors_have_no_such_values() -> None:
    refuse_non_numbers(np.full(3, -1, np.int8), DType.I8, "w")
    refuse_non_numbers(np.zeros((0, 4), np.uint16), DType.BF16, "w")
