"""The house's comparator and its one table of tolerances.

Shape and infinities first, then worst and rms error relative to the reference's largest magnitude
and rms, then the coordinates of the worst element. A tolerance without a reason is not accepted:
each row of the table says where its number comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.storage import Array


@dataclass(frozen=True)
class Tolerance:
    """Bounds on max|error| / max|reference| and rms(error) / rms(reference)."""

    worst: float
    rms: float
    reason: str


_EXACT = Tolerance(0.0, 0.0, "copies and widening change no bit")
_F32_SUM = Tolerance(4e-6, 2e-6, "one f32 chain over K < 200: a few of 2^-24 for each addition")
_F32_GATED = Tolerance(1e-5, 1e-5, "silu of a large negative sum is as uncertain as that sum")
_F32_MATH = Tolerance(2e-6, 1e-6, "polynomial exp and a few f32 roundings")
_F16_CACHE = Tolerance(
    3e-4, 1e-4, "a key near the middle of two f16 may be rounded to either: 2^-11 of its weight"
)
_F32_GROUPS = Tolerance(
    3e-5, 3e-5, "a group's scaled sum and its offset cancel: a few bits of f32 go each time"
)
_GROUPED = tuple(dtype for dtype in DType if dtype.group_size)
_BF16_STORE = Tolerance(0.0040, 0.0040, "bf16 keeps 8 bits: half a step is 2^-8 of an element")
_BF16_PROBABILITIES = Tolerance(
    0.0079, 0.0060, "probabilities, then results, are rounded to bf16: two half steps of 2^-8"
)

# By op and by the type of its weights (or cache). f16 weights meet f32 activations.
TOLERANCES: dict[tuple[str, DType], Tolerance] = {
    **{("embedding", dtype): _EXACT for dtype in DType},
    **{("gather_last", dtype): _EXACT for dtype in DType},
    **{("linear", dtype): _F32_SUM for dtype in DType},
    **{("linear_residual", dtype): _F32_SUM for dtype in DType},
    **{("linear_gated", dtype): _F32_GATED for dtype in (DType.F32, DType.F16, DType.Q8, DType.F8)},
    **{
        (kind, dtype): _F32_GROUPS
        for kind in ("linear", "linear_residual", "linear_gated")
        for dtype in _GROUPED
    },
    **{("linear_gated", dtype): _BF16_STORE for dtype in (DType.BF16, DType.BF12)},
    **{("rms_norm", dtype): _F32_MATH for dtype in (DType.F32, DType.F16)},
    ("rms_norm", DType.BF16): _BF16_STORE,
    **{("rope_cache", dtype): _F32_MATH for dtype in (DType.F32, DType.F16)},
    ("rope_cache", DType.BF16): _BF16_STORE,
    **{("rope_cache", dtype): _BF16_STORE for dtype in (DType.Q8, DType.F8)},
    ("paged_attention", DType.F32): _F32_SUM,
    **{("paged_attention", dtype): _BF16_PROBABILITIES for dtype in (DType.Q8, DType.F8)},
    ("paged_attention", DType.F16): _F16_CACHE,
    ("paged_attention", DType.BF16): _BF16_PROBABILITIES,
}


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart, relative to the reference."""

    worst: float
    rms: float
    where: tuple[int, ...]


def measure(got: Array, expected: Array) -> Difference:
    """Measure the distance; shapes and infinities must agree."""
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    is_odd = ~np.isfinite(expected)
    assert not np.isnan(got).any(), f"{int(np.isnan(got).sum())} NaN(s)"
    assert np.array_equal(got[is_odd], expected[is_odd]), "infinities differ"
    if not got.size:
        return Difference(0.0, 0.0, ())
    wide = np.where(is_odd, 0.0, expected).astype(np.float64)
    error = np.abs(np.where(is_odd, 0.0, got).astype(np.float64) - wide)
    where = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    peak, spread = float(np.abs(wide).max()), float(np.sqrt(np.mean(wide**2)))
    worst = float(error.max()) / peak if peak else float(error.max())
    rms = float(np.sqrt(np.mean(error**2)))
    return Difference(worst, rms / spread if spread else rms, where)


def assert_close(got: Array, expected: Array, tolerance: Tolerance, what: str = "") -> None:
    """Compare with a reference; the message names the worst element."""
    found = measure(got, expected)
    if found.worst <= tolerance.worst and found.rms <= tolerance.rms:
        return
    at = found.where
    raise AssertionError(
        f"{what}: worst {found.worst:.3g} (allowed {tolerance.worst:.3g}), rms {found.rms:.3g} "
        f"(allowed {tolerance.rms:.3g}: {tolerance.reason}); worst at {at}: "
        f"{got[at]!r}, expected {expected[at]!r}"
    )


def assert_same_bits(got: Array, expected: Array, what: str = "") -> None:
    """Compare bit for bit; the message counts and names the first difference."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, what
    words = f"u{got.dtype.itemsize}"
    differs = np.ascontiguousarray(got).view(words) != np.ascontiguousarray(expected).view(words)
    if differs.any():
        at = tuple(int(i) for i in np.argwhere(differs)[0])
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {differs.size} elements differ, first at {at}: "
            f"{got[at]!r}, expected {expected[at]!r}"
        )
