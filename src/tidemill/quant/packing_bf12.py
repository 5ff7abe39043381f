"""bf16 weights packed as bf12: panels of twelve bits a weight, and a list of those that need more.

In: (N, K) bf16 bits. Out: (N padded / 32, panel bytes), from which the same bits can be had again.
Layout: ops/layout.py. Each output has the sixteen exponents that leave the fewest weights outside.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError
from tidemill.ir.storage import Array, narrow, widen
from tidemill.ops.layout import (
    LANES,
    LISTED_AT,
    NOWHERE,
    PANEL,
    listed_inputs_at,
    most_listed,
    padded_k,
    padded_n,
    panel_bytes,
    panel_header_bytes,
)

_EXPONENTS, _ONE, _INFINITY = 16, 127, 255
_INPUTS = 8  # of a word
_WEIGHTS_AT_ONCE = 1 << 17
_SIGN, _MAGNITUDE = 0x8000, 0x7FFF
_HINT = "build with --quant none; with --quant_head none, if this is the head or the embedding"
_NIBBLES, _LOW_BITS = np.uint32(0x000F000F), np.uint32(0x00070007)


def pack_bf12(weight_NK: Array, name: str) -> Array:
    """Pack a matrix. Raises: BuildError with its name where a panel cannot hold its weights."""
    rows, columns = weight_NK.shape
    size_bytes = panel_bytes(columns, DType.BF12)
    packed = np.zeros((padded_n(rows) // PANEL, size_bytes), np.uint8)
    # A few panels at once: what is computed between stays in a core's cache.
    at_once = max(1, _WEIGHTS_AT_ONCE // (PANEL * columns))
    for first in range(0, len(packed), at_once):
        part = np.ascontiguousarray(weight_NK[first * PANEL : (first + at_once) * PANEL])
        padding = (
            (0, padded_n(len(part)) - len(part)),
            (0, padded_k(columns, DType.BF12) - columns),
        )
        starts = range(first * PANEL, first * PANEL + len(part), PANEL)
        names = [f"{name}, outputs {start} to {start + PANEL - 1}" for start in starts]
        _pack(np.pad(part, padding), packed[first : first + at_once], columns, names)
    return packed


def _pack(bits: Array, to: Array, columns: int, names: list[str]) -> None:
    """Pack some panels; `names` are theirs, for errors."""
    magnitudes = bits & _MAGNITUDE
    tops = _choose_tops(magnitudes)
    # What lies below the sixteen exponents wraps around. Code 0 is zero's, not the least number's.
    codes = magnitudes - ((tops - (_EXPONENTS - 1)) << 7)[:, None]
    fits = (codes < _EXPONENTS << 7) & (codes != 0) | (magnitudes == 0)
    words_fit = fits.reshape(len(bits), -1, _INPUTS).all(axis=-1)
    is_kept = words_fit[:, :, None] & (magnitudes != 0).reshape(*words_fit.shape, _INPUTS)
    words = _words((codes | bits & _SIGN) * is_kept.reshape(bits.shape))
    scales = (tops.astype(np.uint32) << 23).view(np.float32)
    first, inputs_at = panel_header_bytes(DType.BF12, columns), listed_inputs_at(columns)
    to[:, :LISTED_AT] = scales.reshape(-1, PANEL).view(np.uint8)
    to[:, first:] = words
    places = to[:, LISTED_AT:inputs_at].view(np.int32)
    listed = to[:, inputs_at:first].view(np.uint16).reshape(len(to), -1, _INPUTS)
    places[:] = NOWHERE
    for panel, is_listed in enumerate(~words_fit.reshape(len(to), PANEL, -1)):
        steps, outputs = np.nonzero(is_listed.T)
        if len(steps) > most_listed(columns):
            raise _too_many(len(steps), columns, names[panel])
        places[panel, : len(steps)] = steps * PANEL + outputs
        rows = panel * PANEL + outputs
        inputs = bits.reshape(len(bits), -1, _INPUTS)[rows, steps]
        listed[panel, : len(steps)] = _over_scale(inputs, scales[rows], names[panel])


def _over_scale(inputs: Array, scales: npt.NDArray[np.float32], name: str) -> Array:
    """bf16 inputs over their outputs' scales, exactly."""
    wide, scales = widen(inputs, DType.BF16), scales[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        over_scale = narrow(wide / scales, DType.BF16)
        is_lost = widen(over_scale, DType.BF16) * scales != wide
    if is_lost.any():
        raise BuildError(
            "a weight is too far from its output's others to be kept in 12 bits",
            where=f"--quant w12a16, {name}",
            expected="at most 2^126 times as large or small as the largest of the others",
            got=f"{wide[is_lost][0]:.3g}",
            hint=_HINT + "; and look at the checkpoint: such a weight is odd",
        )
    return over_scale


def _choose_tops(magnitudes: Array) -> npt.NDArray[np.uint16]:
    """The highest exponent of each output's sixteen: those that leave the fewest weights outside.

    Less one, a power of two counts to the exponent below, which alone has a code for it where it is
    the least; zero counts to none that is looked at. Of choices that leave out the same, the scale
    nearest to 1 is taken: dividing by it loses nothing of numbers that are hardly any.
    """
    rows, bins = len(magnitudes), 1 << 9
    place = ((magnitudes - np.uint16(1)) >> 7).astype(np.int64)
    place += np.arange(0, rows * bins, bins)[:, None]
    counts = np.bincount(place.reshape(-1), minlength=rows * bins).reshape(rows, bins)
    up_to = counts[:, :_INFINITY].cumsum(axis=1)
    covered = up_to[:, _EXPONENTS:] - up_to[:, :-_EXPONENTS]
    highest = (_INFINITY - 1 - covered[:, ::-1].argmax(axis=1)).astype(np.uint16)
    is_below = magnitudes < ((highest + 1) << 7)[:, None]
    least = (magnitudes * is_below).max(axis=1) >> 7
    tops: npt.NDArray[np.uint16] = np.maximum(least, np.minimum(highest, _ONE))
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


def _too_many(num: int, columns: int, name: str) -> BuildError:
    return BuildError(
        "too many weights do not fit 12 bits",
        where=f"--quant w12a16, {name}",
        expected=f"at most {most_listed(columns)} of {PANEL * columns // _INPUTS} groups of 8 with "
        "exponents outside of 16",
        got=str(num),
        hint=_HINT + "; these weights are spread more widely than most",
    )
