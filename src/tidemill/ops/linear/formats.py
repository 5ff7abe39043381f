"""The formats of linear layers, and the choice of one for a pair of weight and activation types.

Here are plain weights, and those of 8 bits; others have modules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import F32, I32
from tidemill.ops.cpu_elements import PairMath, widen_e4m3
from tidemill.ops.layout import PANEL
from tidemill.ops.linear.format_contract import Format
from tidemill.ops.linear.formats_bf12 import Bf12Format
from tidemill.ops.linear.formats_q4 import Q4Format, Q4WidenedFormat
from tidemill.ops.linear.widened import WidenedFormat, pair_of
from tidemill.ops.row import activation_dtype


@dataclass(frozen=True)
class PlainFormat(Format):
    """bf16, f16 and f32 weights with the activations that belong to them."""

    @property
    def math(self) -> PairMath:
        return PairMath(self.isa, self.weight)

    @property
    def name(self) -> str:
        return self.weight.value

    @property
    def vector_bytes(self) -> int:
        return self.math.vector_bytes

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return (self.math.load_w(pointer),)

    def load_x(self, pointer: Pointer, part: int) -> Value:
        return self.math.load_x(pointer)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.math.dot(total, w, x)


@dataclass(frozen=True)
class Q8Format(Format):
    """q8 weights with q8 activations: exact sums of integers, then both scales."""

    def start(self, panel: Pointer, j: int) -> Value:
        return panel.of(I32).vec(PANEL + j * LANES, LANES)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.isa.dot_quad(total, w, x)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        assert x_scale is not None
        return total.to(F32) * x_scale[0] * panel.vec(j * LANES, LANES)


@dataclass(frozen=True)
class ByteFormat(WidenedFormat):
    """q8 and f8 weights, widened in registers, with f32 or bf16 activations; sums in f32.

    What a byte stands for is exact in bf16, so that a bf16 dot product takes two of a word at once.
    """

    @property
    def num_parts(self) -> int:
        return 2 if self.takes_pairs else 4

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        if not self.takes_pairs:
            return self._byte(words[0], part)
        return pair_of(*(self._byte(words[0], 2 * part + i) for i in range(2)))

    def _byte(self, word: Value, index: int) -> Value:
        """What byte `index` of each word stands for, as f32."""
        at_top = word << (24 - 8 * index)
        if self.weight is DType.F8:
            return widen_e4m3(at_top)
        return at_top.shift_right_signed(24).to(F32)


def format_for(isa: Isa, weight: DType, activation: DType) -> Format:
    """Choose the format of a pair of types."""
    return _kind_of(weight, activation)(isa, weight, activation)


def _kind_of(weight: DType, activation: DType) -> type[Format]:
    if weight.group_size:
        return Q4Format if activation is DType.Q8 else Q4WidenedFormat
    if weight is DType.BF12:
        return Bf12Format
    if weight.is_quantized:
        return Q8Format if (weight, activation) == (DType.Q8, DType.Q8) else ByteFormat
    assert activation is activation_dtype(weight), (weight, activation)
    return PlainFormat
