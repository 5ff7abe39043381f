"""Element types as NumPy carries them: storage arrays to float and back.

In: arrays in storage type (bf16 as raw uint16 bits; q8 as bytes, each row followed by its f32
scale). Out: float32, exactly; or the reverse, rounded to nearest, ties to even. Knows nothing of
graphs or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import GROUP_HEADER_BYTES, SCALE_BYTES, DType

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]


def widen(array: Array, dtype: DType) -> npt.NDArray[np.float32]:
    """Return float32 values of a stored float array; exact but for the product with a scale."""
    assert array.dtype.name == dtype.storage_name, (array.dtype, dtype)
    if dtype is DType.Q8:
        levels, scales = split_q8(array)
        return levels.astype(np.float32) * scales[..., None]
    if dtype.group_size:
        nibbles, scales, offsets = split_q4(array, dtype)
        values = scales[..., None] * nibbles - offsets[..., None]
        return np.asarray(values.reshape(*array.shape[:-1], -1), np.float32)
    if dtype is DType.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def narrow(values: FloatArray, dtype: DType) -> Array:
    """Return float values in storage type, rounded to nearest even.

    Values beyond the range become infinity, as IEEE 754 rounding asks; NaN stays NaN.
    """
    if dtype is DType.Q8:
        return _narrow_q8(values.astype(np.float32, copy=False))
    if dtype.group_size:
        return _narrow_q4(values.astype(np.float32, copy=False), dtype)
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


def storage_shape(shape: tuple[int, ...], dtype: DType) -> tuple[int, ...]:
    """Return the shape of the storage array of a value of this shape."""
    return (*shape[:-1], dtype.row_bytes(shape[-1])) if dtype.is_quantized else shape


def split_q8(array: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Take stored q8 rows apart into levels and one scale a row."""
    levels = array[..., :-SCALE_BYTES].view(np.int8)
    scales = np.ascontiguousarray(array[..., -SCALE_BYTES:]).view(np.float32)[..., 0]
    return levels, scales


def join_q8(levels: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> Array:
    """Put levels and scales together as stored q8 rows."""
    scale_bytes = np.ascontiguousarray(scales[..., None], np.float32).view(np.uint8)
    return np.concatenate([levels.view(np.uint8), scale_bytes], axis=-1)


def _narrow_q8(values: npt.NDArray[np.float32]) -> Array:
    """Quantise each row symmetrically: the largest magnitude becomes 127.

    The operations and their order are those of the kernels, so that levels agree bit for bit.
    """
    largest = np.abs(values).max(axis=-1, initial=0.0)
    is_zero = largest == 0
    inverse = np.where(is_zero, np.float32(0), np.float32(127) / np.where(is_zero, 1, largest))
    levels = np.rint(values * inverse[..., None].astype(np.float32)).astype(np.int8)
    return join_q8(levels, largest * np.float32(1 / 127))


def split_q4(array: Array, dtype: DType) -> tuple[Array, FloatArray, FloatArray]:
    """Take stored 4-bit rows apart.

    Shapes: nibbles (..., groups, group size), f32 scales and offsets (..., groups).
    """
    size = dtype.group_size
    groups = array.reshape(*array.shape[:-1], -1, GROUP_HEADER_BYTES + size // 2)
    header = np.ascontiguousarray(groups[..., :GROUP_HEADER_BYTES]).view(np.float16)
    packed = groups[..., GROUP_HEADER_BYTES:]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*groups.shape[:-1], size)
    return nibbles, header[..., 0].astype(np.float32), header[..., 1].astype(np.float32)


def _narrow_q4(values: npt.NDArray[np.float32], dtype: DType) -> Array:
    """Quantise each group between its least and its largest value, rounded to f16 first."""
    groups = values.reshape(*values.shape[:-1], -1, dtype.group_size)
    low, high = groups.min(-1), groups.max(-1)
    offsets = (-low).astype(np.float16)
    scales = ((high - low) / 15).astype(np.float16)
    wide = np.where(scales == 0, np.float32(1), scales.astype(np.float32))[..., None]
    levels = np.rint((groups + offsets.astype(np.float32)[..., None]) / wide)
    levels = levels.clip(0, 15).astype(np.uint8)
    packed = levels[..., ::2] | levels[..., 1::2] << 4
    header = np.stack([scales, offsets], axis=-1).view(np.uint8)
    stored = np.concatenate([header, packed], axis=-1)
    return np.asarray(stored.reshape(*values.shape[:-1], -1))


def rounded(values: FloatArray, dtype: DType) -> FloatArray:
    """Return the values as `dtype` can hold them, in the float type they came in."""
    return widen(narrow(values, dtype), dtype).astype(values.dtype)
