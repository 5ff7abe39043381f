"""Refuses weights that are not numbers: one NaN in a matrix makes every answer nothing.

In: the loader of a tensor. Out: a loader that fails where a value is NaN or infinite. Values are
looked at as bits, in chunks, since NumPy has no bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.file_bytes import Array

_CHUNK_ELEMENTS = 1 << 20
# A value whose exponent has all bits set is an infinity or NaN.
_WORD_AND_EXPONENT = {
    DType.F32: (np.uint32, 0x7F80_0000),
    DType.F16: (np.uint16, 0x7C00),
    DType.BF16: (np.uint16, 0x7F80),
}

Loader = Callable[[DType], Array]


def numbers_only(name: str, load: Loader) -> Loader:
    """Return a loader that raises CheckpointError for a tensor with NaN or infinite values."""

    def load_checked(dtype: DType) -> Array:
        values = load(dtype)
        places = _non_numbers(values, dtype) if dtype in _WORD_AND_EXPONENT else []
        if places:
            at = np.unravel_index(places[0], values.shape)
            raise CheckpointError(
                "a tensor has values that are not numbers",
                where=f"{name}{list(map(int, at))}",
                expected="finite values",
                got=f"{len(places)} of {values.size} are NaN or infinite",
                hint="the file is damaged, or training diverged: get the model again",
            )
        return values

    return load_checked


def _non_numbers(values: Array, dtype: DType) -> list[int]:
    word, exponent = _WORD_AND_EXPONENT[dtype]
    flat = np.ascontiguousarray(values).reshape(-1).view(word)
    places: list[int] = []
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS] & word(exponent)
        places += (np.flatnonzero(chunk == exponent) + start).tolist()
    return places
