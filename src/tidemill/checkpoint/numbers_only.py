"""Refuses weights that are not numbers: one NaN in a matrix makes every answer nothing.

In: a tensor, or its loader. Out: an error where a value is NaN or infinite. Values are looked at as
bits, in chunks that stay in a core's cache, since NumPy has neither bfloat16 nor e4m3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.file_bytes import Array

_CHUNK_ELEMENTS = 1 << 18
# The word that carries a value, all of its bits but the sign, and the first of them that stand for
# no number. Bytes are e4m3's, which has no infinity.
_WORD_MAGNITUDE_AND_FIRST_BAD = {
    DType.F32: (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    DType.F16: (np.uint16, 0x7FFF, 0x7C00),
    DType.BF16: (np.uint16, 0x7FFF, 0x7F80),
    DType.U8: (np.uint8, 0x7F, 0x7F),
}

Loader = Callable[[DType], Array]


def numbers_only(name: str, load: Loader) -> Loader:
    """Return a loader that raises CheckpointError for a tensor with NaN or infinite values."""

    def load_checked(dtype: DType) -> Array:
        values = load(dtype)
        refuse_non_numbers(values, dtype, name)
        return values

    return load_checked


def refuse_non_numbers(values: Array, dtype: DType, where: str) -> None:
    """Raise CheckpointError for NaN or infinite values; integers have none."""
    if dtype not in _WORD_MAGNITUDE_AND_FIRST_BAD:
        return
    first, count = _find_non_numbers(values, dtype)
    if count:
        at = np.unravel_index(first, values.shape)
        raise CheckpointError(
            "a tensor has values that are not numbers",
            where=f"{where}{list(map(int, at))}",
            expected="finite values",
            got=f"{count} of {values.size} are NaN or infinite",
            hint="the file is damaged, or training diverged: get the model again",
        )


def _find_non_numbers(values: Array, dtype: DType) -> tuple[int, int]:
    """Return the first place and the count."""
    word, magnitude, first_bad = _WORD_MAGNITUDE_AND_FIRST_BAD[dtype]
    flat = np.ascontiguousarray(values).reshape(-1).view(word)
    first, count = 0, 0
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS] & word(magnitude)
        if chunk.max() >= first_bad:
            is_bad = chunk >= first_bad
            first = first if count else start + int(is_bad.argmax())
            count += int(np.count_nonzero(is_bad))
    return first, count
