"""fp8 e4m3 (the "fn" kind: no infinities, largest value 448) as raw bytes, to float and back.

In: bytes, or float32 values. Out: float32, exactly; or bytes, rounded to nearest even and held at
the largest magnitude, as TensorRT-LLM's quantiser does. Source: OCP 8-bit floating point, 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

E4M3_MAX = np.float32(448)
_NAN = 0x7F
_SMALLEST_NORMAL = np.float32(2.0**-6)
_DROPPED_BITS = 20  # of a float32's fraction, which keeps three
_BIAS = (127 - 7) << 3  # float32's exponent over e4m3's, above three bits of fraction


def _values() -> npt.NDArray[np.float32]:
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(
        exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7)
    )
    magnitude[(codes & _NAN) == _NAN] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


_TABLE = _values()


def widen_e4m3(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the value of each byte."""
    return _TABLE[codes]


def narrow_e4m3(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the byte nearest to each value; NaN stays NaN."""
    bits: npt.NDArray[Any] = np.ascontiguousarray(values, np.float32).view(np.uint32)
    magnitude = np.minimum(np.abs(values), E4M3_MAX)
    kept = magnitude.view(np.uint32)
    # Half a unit in the last kept place, less one where that place is even: ties go to even.
    half = np.uint32((1 << (_DROPPED_BITS - 1)) - 1)
    rounded = (kept + half + ((kept >> _DROPPED_BITS) & 1)) >> _DROPPED_BITS
    # Eight units of the smallest kind are the code of the smallest normal value.
    small = np.rint(np.where(magnitude < _SMALLEST_NORMAL, magnitude, 0) * np.float32(2.0**9))
    code = np.where(magnitude < _SMALLEST_NORMAL, small.astype(np.uint32), rounded - _BIAS)
    code = np.where(np.isnan(values), np.uint32(_NAN), code)
    signed: npt.NDArray[np.uint8] = (code | ((bits >> 24) & 0x80)).astype(np.uint8)
    return signed
