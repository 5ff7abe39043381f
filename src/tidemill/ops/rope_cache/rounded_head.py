"""A head of one token as the cache stores it: elements of its type, and a scale where it has one.

In: f32 elements of a head in memory. Out: storage lanes, sixteen at a time, and the scale. int8
levels and fp8 codes are relative to the head's own largest magnitude (ir/storage.py says how), so
that no other token has a part in them. What is to be quantised is made finite first.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.types import I8
from tidemill.ops.cpu_elements import narrow_e4m3, round_lanes

_LARGEST = {DType.F32: 3.4028234663852886e38, DType.BF16: 3.3895313892515355e38, DType.F16: 65504.0}
_E4M3_MAX = 448.0


class RoundedHead:
    """One head, `width` elements from `head` on."""

    def __init__(self, isa: Isa, dtype: DType, head: Pointer, width: int, is_finite: bool) -> None:
        self._isa, self._dtype, self._head, f = isa, dtype, head, head.f
        self._largest = _LARGEST.get(dtype, _LARGEST[DType.F32])
        self._is_clamped = is_finite or dtype.is_quantized
        self.scale: Value | None = None
        if not dtype.is_quantized:
            return
        most = f.zero(V)
        for i in range(0, width, LANES):
            most = most.max(self._load(i).call("fabs"))
        most = most.lanes_max()
        if dtype is DType.F8:
            scale = most / f.constant(_E4M3_MAX, V)
            self._divisor = f.select(scale.eq(0.0), f.constant(1.0, V), scale)
        else:
            scale = most * (1 / 127)
            self._factor = f.select(most.eq(0.0), f.zero(V), f.constant(127.0, V) / most)
        self.scale = scale.lane(0)

    def lanes(self, i: int) -> Value:
        """Elements [i, i + 16) as they are stored."""
        value = self._load(i)
        if self._dtype is DType.Q8:
            return (value * self._factor).call("rint").to(I8)
        if self._dtype is DType.F8:
            return narrow_e4m3(value / self._divisor)
        return round_lanes(self._isa, value, self._dtype)

    def _load(self, i: int) -> Value:
        """Elements as they are; clamped, where asked, so that NaN becomes the lowest number."""
        value = self._head.vec(i, LANES)
        return value.max(-self._largest).min(self._largest) if self._is_clamped else value
