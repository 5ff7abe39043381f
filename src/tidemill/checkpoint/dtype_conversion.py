"""Conversion of stored floats between float32, float16 and bfloat16, correctly rounded.

In: an array in storage type (bfloat16 as uint16 bits). Out: the same, another type, rounded to
nearest even, with subnormals, infinities and NaN kept. A finite value too large for float16 is an
error, never a silent infinity. Works in chunks, so that temporaries stay small whatever the size.
"""

from __future__ import annotations

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.file_bytes import Array

_CHUNK_ELEMENTS = 1 << 18
_FLOATS = (DType.F32, DType.F16, DType.BF16)


def convert_floats(values: Array, source: DType, target: DType, where: str) -> Array:
    """Convert an array in storage type to another float type.

    Returns the array itself when the types are equal.
    Raises: CheckpointError when a finite value does not fit float16, or a type is not a float.
    """
    if source is target:
        return values
    out = np.empty(values.shape, dtype=target.storage_name)
    convert_into(out, target, values, source, where)
    return out


def convert_into(out: Array, target: DType, values: Array, source: DType, where: str) -> None:
    """Convert `values` into the contiguous array `out` of the same number of elements."""
    if source not in _FLOATS or target not in _FLOATS:
        raise CheckpointError(
            "tensor is not of a float type",
            where=where,
            expected="float32, float16 or bfloat16",
            got=(target if source in _FLOATS else source).value,
            hint="the source may be quantised; start from the original weights",
        )
    flat_out = out.reshape(-1)
    flat_in = values.reshape(-1)
    assert np.shares_memory(flat_out, out) or out.size == 0, "`out` must be contiguous"
    for start in range(0, flat_in.size, _CHUNK_ELEMENTS):
        piece = slice(start, min(start + _CHUNK_ELEMENTS, flat_in.size))
        flat_out[piece] = _convert_chunk(flat_in[piece], source, target, where)


def _convert_chunk(values: Array, source: DType, target: DType, where: str) -> Array:
    if source is target:
        return values
    wide = widen(values, source)
    if target is DType.F32:
        return wide
    return _to_bf16(wide) if target is DType.BF16 else _to_f16(wide, where)


def widen(values: Array, source: DType) -> Array:
    """Return float32 values; exact for every source type."""
    if source is DType.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _to_bf16(values: Array) -> Array:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Half a unit in the last kept place, less one where that place is even: ties go to even. The
    # largest finite values carry into the exponent and become infinity, as IEEE rounding asks.
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    out = rounded.astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        # A NaN whose payload sits in the dropped bits would turn into infinity: set its quiet bit.
        out[is_nan] = (bits[is_nan] >> 16).astype(np.uint16) | 0x0040
    return out


def _to_f16(values: Array, where: str) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        out = values.astype(np.float16)
    overflow = np.isinf(out)
    if overflow.any():
        overflow &= np.isfinite(values)
        if overflow.any():
            raise CheckpointError(
                "values do not fit float16",
                where=where,
                expected="magnitudes up to 65504",
                got=f"{np.abs(values[overflow]).max():.6g}",
                hint="convert with --dtype bfloat16 (or float32)",
            )
    return out
