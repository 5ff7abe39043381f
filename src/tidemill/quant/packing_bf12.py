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
_EXPONENTS, _INFINITY = 16, 255
_WEIGHTS_AT_ONCE = 1 << 17
_SIGN, _MAGNITUDE = 0x8000, 0x7FFF
_NIBBLES, _LOW_BITS = np.uint32(0x000F000F), np.uint32(0x00070007)


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
    magnitudes = bits & _MAGNITUDE
    tops = _choose_tops(magnitudes)
    # What lies below the sixteen exponents wraps around. Code 0 is zero's, not the least number's.
    codes = magnitudes - ((tops - (_EXPONENTS - 1)) << 7)[:, None]
    fits = (codes < _EXPONENTS << 7) & (codes != 0)
    words = _words((codes | bits & _SIGN) * fits)
    scales = (tops.astype(np.uint32) << 23).view(np.float32)
    header_bytes = 4 * PANEL
    listed_at = header_bytes + words.shape[1]
    to[:, :header_bytes] = scales.reshape(-1, PANEL).view(np.uint8)
    to[:, header_bytes:listed_at] = words
    outputs, inputs = np.divmod(np.flatnonzero(~fits & (magnitudes != 0)), bits.shape[1])
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


def _choose_tops(magnitudes: Array) -> npt.NDArray[np.uint16]:
    """The highest exponent of each output's sixteen: those that leave the fewest weights outside.

    Less one, a power of two counts to the exponent below, which alone has a code for it where it is
    the least; zero counts to none that is looked at. Of equal choices the highest leaves room.
    """
    rows, bins = len(magnitudes), 1 << 9
    place = ((magnitudes - np.uint16(1)) >> 7).astype(np.int64)
    place += np.arange(0, rows * bins, bins)[:, None]
    counts = np.bincount(place.reshape(-1), minlength=rows * bins).reshape(rows, bins)
    up_to = counts[:, :_INFINITY].cumsum(axis=1)
    covered = up_to[:, _EXPONENTS:] - up_to[:, :-_EXPONENTS]
    highest = _INFINITY - 1 - covered[:, ::-1].argmax(axis=1)
    tops: npt.NDArray[np.uint16] = highest.astype(np.uint16)
    return tops


def _words(codes_NK: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Three words of each 8 inputs. Shapes: (N, K) codes -> (N / 32, bytes)."""
    pairs = codes_NK.view(np.uint32).reshape(len(codes_NK), -1, 4)  # two codes in each
    last = pairs[..., 3].copy()
    pieces = (last >> 7, last >> 3, (last & _LOW_BITS) | ((last >> 12) & ~_LOW_BITS))
    words = np.empty((len(codes_NK) // PANEL, pairs.shape[1], 2, 3, LANES), np.uint32)
    for i, piece in enumerate(pieces):
        of_outputs = pairs[..., i] | ((piece & _NIBBLES) << 11)
        words[:, :, :, i] = of_outputs.reshape(-1, 2, LANES, pairs.shape[1]).transpose(0, 3, 1, 2)
    return words.reshape(len(words), -1).view(np.uint8)


def _too_many(num: int, columns: int, panel: int) -> BuildError:
    return BuildError(
        "too many weights do not fit 12 bits",
        where=f"--quant w12a16, outputs {PANEL * panel} to {PANEL * panel + PANEL - 1} of a matrix",
        expected=f"at most {most_listed(columns)} of {PANEL * columns} outside of 16 exponents",
        got=str(num),
        hint="build with --quant none: these weights are spread more widely than most",
    )
