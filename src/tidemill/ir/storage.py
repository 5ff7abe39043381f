"""Element types as NumPy carries them: storage arrays to float and back.

In: arrays in storage type (bf16 as raw uint16 bits). Out: float32, exactly; or the reverse,
rounded to nearest, ties to even. Knows nothing of graphs or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]


def widen(array: Array, dtype: DType) -> npt.NDArray[np.float32]:
    """Return float32 values of a stored float array; exact for f32, f16 and bf16."""
    assert array.dtype.name == dtype.storage_name, (array.dtype, dtype)
    if dtype is DType.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def narrow(values: FloatArray, dtype: DType) -> Array:
    """Return float values in storage type, rounded to nearest even.

    Values beyond the range become infinity, as IEEE 754 rounding asks; NaN stays NaN.
    """
    if dtype is not DType.BF16:
        with np.errstate(over="ignore"):
            return values.astype(dtype.storage_name)
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    # Half a unit in the last kept place, less one where that place is even: ties go to even.
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    # A NaN whose payload sits in the dropped bits would turn into infinity: set its quiet bit.
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(single), quiet, rounded)


def rounded(values: FloatArray, dtype: DType) -> FloatArray:
    """Return the values as `dtype` can hold them, in the float type they came in."""
    return widen(narrow(values, dtype), dtype).astype(values.dtype)
