"""bf16 weights packed as bf12: panels of twelve bits a weight, and a list of those that need more.

In: (N, K) bf16 bits. Out: (N padded / 32, panel bytes), from which the same bits can be had again.
Layout: ops/layout.py. Each output has the sixteen exponents that leave the fewest weights outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError
from tidemill.ops.layout import (
    CACHE_LINE_BYTES,
    LANES,
    PANEL,
    most_listed,
    padded_k,
    padded_n,
    panel_bytes,
)

Array = npt.NDArray[Any]
_EXPONENTS = 16
_WEIGHTS_AT_ONCE = 1 << 17
_SIGN, _MANTISSA, _MAGNITUDE = 0x8000, 0x007F, 0x7FFF


def pack_bf12(weight_NK: Array) -> Array:
    """Pack a matrix. Raises: BuildError where a panel's list is too short."""
    rows, columns = weight_NK.shape
    size_bytes = panel_bytes(columns, DType.BF12)
    packed = np.zeros((padded_n(rows) // PANEL, size_bytes), np.uint8)
    # A few panels at once: what is computed between stays in a core's cache.
    at_once = max(1, _WEIGHTS_AT_ONCE // (PANEL * columns))
    for first in range(0, len(packed), at_once):
        part = weight_NK[first * PANEL : (first + at_once) * PANEL]
        padding = (
            (0, padded_n(len(part)) - len(part)),
            (0, padded_k(columns, DType.BF12) - columns),
        )
        _pack(np.pad(part, padding), packed[first : first + at_once], columns, first)
    return packed


def _pack(bits: Array, to: Array, columns: int, first_panel: int) -> None:
    """Pack some panels."""
    exponents = (bits >> 7).astype(np.uint8)
    mantissa = bits & _MANTISSA
    is_number = (bits & _MAGNITUDE) != 0
    tops = _choose_tops(exponents, mantissa == 0)
    field = exponents - (tops[:, None] - (_EXPONENTS - 1))
    # Exponent and mantissa 0 stand for zero, not for the least number.
    fits = is_number & (field >= 0) & (field < _EXPONENTS) & ((field > 0) | (mantissa > 0))
    codes = ((bits & _SIGN) | (field.astype(np.uint16) << 7) | mantissa) * fits
    scales = (tops.astype(np.uint32) << 23).view(np.float32)
    words = _words(codes)
    header_bytes = 4 * PANEL
    listed_at = header_bytes + words.shape[1]
    to[:, :header_bytes] = scales.reshape(-1, PANEL).view(np.uint8)
    to[:, header_bytes:listed_at] = words
    outputs, inputs = np.nonzero(is_number & ~fits)
    values = (bits[outputs, inputs].astype(np.uint32) << 16).view(np.float32) / scales[outputs]
    for panel, tail in enumerate(to[:, listed_at:]):
        is_here = outputs // PANEL == panel
        entries = np.empty((is_here.sum(), 2), np.uint32)
        if len(entries) > most_listed(columns):
            raise _too_many(len(entries), columns, first_panel + panel)
        entries[:, 0] = inputs[is_here] * PANEL + outputs[is_here] % PANEL
        entries[:, 1] = values[is_here].view(np.uint32)
        tail[:4] = np.array([len(entries)], np.int32).view(np.uint8)
        tail[CACHE_LINE_BYTES:][: entries.nbytes] = entries.reshape(-1).view(np.uint8)


def _choose_tops(exponents: Array, is_power: Array) -> npt.NDArray[np.int16]:
    """The highest exponent of each output's sixteen: those that leave the fewest weights outside.

    `is_power` are the weights of mantissa 0, which the least exponent has no code for.
    """
    num_outputs, codes = len(exponents), 256
    place = exponents + np.arange(0, num_outputs * codes, codes, dtype=np.int32)[:, None]
    counts, powers = (
        np.bincount(each, minlength=num_outputs * codes).reshape(num_outputs, codes)
        for each in (place.reshape(-1), place[is_power])
    )
    up_to = counts.cumsum(axis=1)
    covered = up_to[:, _EXPONENTS:-1] - up_to[:, : -1 - _EXPONENTS] - powers[:, 1:-_EXPONENTS]
    tops: npt.NDArray[np.int16] = (covered.argmax(axis=1) + _EXPONENTS).astype(np.int16)
    return tops


def _words(codes_NK: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Three words of each 8 inputs. Shapes: (N, K) codes -> (N / 32, bytes)."""
    pairs = codes_NK.reshape(len(codes_NK), -1, 4, 2)
    last = pairs[:, :, 3]
    words: Array = pairs[:, :, :3].copy()
    words[:, :, 0] |= ((last >> 7) & 0xF) << 11
    words[:, :, 1] |= ((last >> 3) & 0xF) << 11
    words[:, :, 2] |= ((last & _SIGN) >> 1) | ((last & 7) << 11)
    panels = words.reshape(-1, 2, LANES, words.shape[1], 3, 2).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(panels).reshape(len(panels), -1).view(np.uint8)


def _too_many(num: int, columns: int, panel: int) -> BuildError:
    return BuildError(
        "too many weights do not fit 12 bits",
        where=f"--quant w12a16, outputs {PANEL * panel} to {PANEL * panel + PANEL - 1} of a matrix",
        expected=f"at most {most_listed(columns)} of {PANEL * columns} outside of 16 exponents",
        got=str(num),
        hint="build with --quant none: these weights are spread more widely than most",
    )
