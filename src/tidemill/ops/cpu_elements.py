"""How kernels read and write each element type: always computing in f32 vectors of 16.

A bf16 value travels as i16 bits. The `PairMath` of a weight type is what a linear layer and
attention share: one broadcast word of x against 16 words of w.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import F16, F32, I8, I16, I32, Type

_E4M3_IN_F32 = -0x78100000  # bits 31 and 26..20
ELEMENT: dict[DType, Type] = {DType.F32: F32, DType.F16: F16, DType.BF16: I16, DType.I32: I32}


def load_f32(pointer: Pointer, index: Value | int, lanes: int, dtype: DType) -> Value:
    """Load `lanes` elements of `dtype` as f32."""
    raw = pointer.of(ELEMENT[dtype]).vec(index, lanes)
    if dtype is DType.F32:
        return raw
    if dtype is DType.F16:
        return raw.to(F32)
    return (raw.to(I32, signed=False) << 16).bits_as(F32.x(lanes))


def widen_e4m3(words: Value) -> Value:
    """The values of fp8 e4m3 bytes at the top of i32 lanes, as f32, exactly.

    Sign, exponent and fraction are put where f32 has them; the product makes up for the biases, and
    turns e4m3's subnormals, which are f32's there, into normal values. The code of NaN becomes 480:
    such weights are refused where they are read.
    """
    bits = words.shift_right_signed(4) & _E4M3_IN_F32
    return bits.bits_as(F32.x(words.type.lanes)) * 2.0**120


def narrow_e4m3(value: Value) -> Value:
    """f32 lanes of magnitude 448 or hardly more as fp8 e4m3 bytes, to nearest even."""
    words, f = I32.x(value.type.lanes), value.f
    bits = value.bits_as(words)
    magnitude = value.call("fabs").min(448.0)
    kept = magnitude.bits_as(words)
    # The code of a normal value: 960 makes up for the biases. Below are multiples of 2^-9.
    normal = ((kept + 0x7FFFF + ((kept >> 20) & 1)) >> 20) - 960
    small = (magnitude * 512.0).call("rint").to(I32)
    code = f.select(magnitude < 2.0**-6, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(I8)


def store_f32(isa: Isa, pointer: Pointer, index: Value | int, value: Value, dtype: DType) -> None:
    """Store f32 lanes as elements of `dtype`, rounded to nearest even."""
    pointer.of(ELEMENT[dtype]).put(index, round_lanes(isa, value, dtype))


def round_lanes(isa: Isa, value: Value, dtype: DType) -> Value:
    """f32 lanes as lanes of `dtype`'s element."""
    if dtype is DType.F32:
        return value
    if dtype is DType.F16:
        return value.to(F16)
    return isa.to_bf16(value)


@dataclass(frozen=True)
class PairMath:
    """Multiply-accumulate for one weight (or cache) type.

    A word is `step` consecutive inputs: a bf16 pair in an i32, or a single element. Each output
    element has one accumulation chain, in order of k, whatever the tile around it: this is what
    makes results independent of the batch.
    """

    isa: Isa
    weight: DType

    @property
    def step(self) -> int:
        return 2 if self.weight is DType.BF16 else 1

    @property
    def vector_bytes(self) -> int:
        """Bytes of 16 words of w."""
        return LANES * self.step * self.weight.itemsize_bytes

    def load_w(self, pointer: Pointer) -> Value:
        if self.weight is DType.BF16:
            return pointer.of(I32).vec(0, LANES)
        return load_f32(pointer, 0, LANES, self.weight)

    def load_x(self, pointer: Pointer) -> Value:
        """Broadcast one word of x."""
        word = pointer.of(I32 if self.weight is DType.BF16 else F32)[0]
        return word.splat(LANES)

    def dot(self, acc: Value, w: Value, x: Value) -> Value:
        if self.weight is DType.BF16:
            return self.isa.dot_pair(acc, w, x)
        return w.fma(x, acc)
