"""Element types as NumPy carries them: storage arrays to float and back.

In: arrays in storage type (bf16 and bf12 as raw uint16 bits; q8 and f8 as bytes, each row followed
by its f32 scale). Out: float32, exactly; or the reverse, rounded to nearest, ties to even. Knows
nothing of graphs or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import SCALE_BYTES, DType
from tidemill.ir.e4m3 import E4M3_MAX, narrow_e4m3, widen_e4m3

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
_BF16 = (DType.BF16, DType.BF12)


def widen(array: Array, dtype: DType) -> npt.NDArray[np.float32]:
    """Return float32 values of a stored float array; exact but for the product with a scale."""
    assert array.dtype.name == dtype.storage_name, (array.dtype, dtype)
    if dtype is DType.Q8:
        levels, scales = split_q8(array)
        return levels.astype(np.float32) * scales[..., None]
    if dtype is DType.F8:
        codes, scales = split_scaled(array)
        return widen_e4m3(codes) * scales[..., None]
    if dtype.group_size:
        nibbles, scales, offsets = split_q4(array, dtype)
        values = scales[..., None] * nibbles - offsets[..., None]
        return np.asarray(values.reshape(*array.shape[:-1], -1), np.float32)
    if dtype in _BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def narrow(values: FloatArray, dtype: DType) -> Array:
    """Return float values in storage type, rounded to nearest even.

    Values beyond the range become infinity, as IEEE 754 rounding asks; NaN stays NaN.
    """
    if dtype is DType.Q8:
        return _narrow_q8(values.astype(np.float32, copy=False))
    if dtype is DType.F8:
        return _narrow_f8(values.astype(np.float32, copy=False))
    if dtype.group_size:
        return _narrow_q4(values.astype(np.float32, copy=False), dtype)
    if dtype not in _BF16:
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


def split_scaled(array: Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Take stored rows of q8 or f8 apart into elements and one scale a row."""
    scales = np.ascontiguousarray(array[..., -SCALE_BYTES:]).view(np.float32)[..., 0]
    return array[..., :-SCALE_BYTES], scales


def split_q8(array: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Take stored q8 rows apart into levels and one scale a row."""
    levels, scales = split_scaled(array)
    return levels.view(np.int8), scales


def join_scaled(elements: Array, scales: npt.NDArray[np.float32]) -> Array:
    """Put elements of a byte each and their rows' scales together, as q8 and f8 are stored."""
    scale_bytes = np.ascontiguousarray(scales[..., None], np.float32).view(np.uint8)
    return np.concatenate([elements.view(np.uint8), scale_bytes], axis=-1)


def _narrow_q8(values: npt.NDArray[np.float32]) -> Array:
    """Quantise each row symmetrically: the largest magnitude becomes 127.

    The operations and their order are those of the kernels, so that levels agree bit for bit.
    """
    largest = np.abs(values).max(axis=-1, initial=0.0)
    is_zero = largest == 0
    inverse = np.where(is_zero, np.float32(0), np.float32(127) / np.where(is_zero, 1, largest))
    levels = np.rint(values * inverse[..., None].astype(np.float32)).astype(np.int8)
    return join_scaled(levels, largest * np.float32(1 / 127))


def _narrow_f8(values: npt.NDArray[np.float32]) -> Array:
    """Quantise each row so that its largest magnitude becomes the largest of e4m3."""
    scales = np.abs(values).max(axis=-1, initial=0.0) / E4M3_MAX
    wide = np.where(scales == 0, np.float32(1), scales)[..., None]
    return join_scaled(narrow_e4m3(values / wide), scales)


def split_q4(array: Array, dtype: DType) -> tuple[Array, FloatArray, FloatArray]:
    """Take stored 4-bit rows apart.

    Shapes: nibbles (..., groups, group size), f32 scales and offsets (..., groups). Symmetric
    levels are nibble - 8, so that their offset is 8 scales, exactly.
    """
    size, first = dtype.group_size, dtype.group_header_bytes
    groups = array.reshape(*array.shape[:-1], -1, first + size // 2)
    header = np.ascontiguousarray(groups[..., :first]).view(np.float16).astype(np.float32)
    packed = groups[..., first:]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*groups.shape[:-1], size)
    scales = header[..., 0]
    return nibbles, scales, header[..., 1] if dtype.has_offsets else 8 * scales


def _narrow_q4(values: npt.NDArray[np.float32], dtype: DType) -> Array:
    """Quantise each group; scale and offset are rounded to f16 first."""
    groups = values.reshape(*values.shape[:-1], -1, dtype.group_size)
    header = _q4_range(groups) if dtype.has_offsets else _q4_peak(groups)[..., None]
    scales = header[..., 0].astype(np.float32)
    offsets = header[..., 1].astype(np.float32) if dtype.has_offsets else 8 * scales
    wide = np.where(scales == 0, np.float32(1), scales)[..., None]
    levels = np.rint((groups + offsets[..., None]) / wide).clip(0, 15).astype(np.uint8)
    packed = levels[..., ::2] | levels[..., 1::2] << 4
    header = np.ascontiguousarray(header).view(np.uint8)
    stored = np.concatenate([header, packed], axis=-1)
    return np.asarray(stored.reshape(*values.shape[:-1], -1))


def _q4_range(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Scales and offsets by which the least value of a group becomes 0 and the largest 15."""
    low, high = groups.min(-1), groups.max(-1)
    return np.asarray(np.stack([(high - low) / 15, -low], axis=-1), np.float16)


def _q4_peak(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Scales by which the largest magnitude of a group becomes -8, whatever its sign.

    All sixteen levels are used so; llama.cpp's Q4_0 does the same, and its blocks are found again.
    """
    at = np.abs(groups).argmax(-1)[..., None]
    return np.asarray(np.take_along_axis(groups, at, -1)[..., 0] / -8, np.float16)


def rounded(values: FloatArray, dtype: DType) -> FloatArray:
    """Return the values as `dtype` can hold them, in the float type they came in."""
    return widen(narrow(values, dtype), dtype).astype(values.dtype)
