"""What formats share whose quantised weights are widened in registers to meet plain activations.

In: words of weights, rows of f32 or bf16 activations. Out: f32 sums. On targets with a bf16 dot
product two inputs are taken at once (of bf12 on all), otherwise each is a multiply-add in f32.
How a word is taken apart is each format's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.types import F32, I16, I32
from tidemill.ops.linear.format_contract import Format

HIGH_HALF = -65536  # of an i32 lane


def pair_of(even: Value, odd: Value) -> Value:
    """Two f32 values that bf16 holds exactly, as the pair of a bf16 dot product."""
    low, high = (each.bits_as(I32.x(LANES)) for each in (even, odd))
    return (low >> 16) | (high & HIGH_HALF)


@dataclass(frozen=True)
class WidenedFormat(Format):
    """Weights in 32-bit words, activations in f32 or bf16."""

    @property
    def takes_pairs(self) -> bool:
        return self.activation is DType.BF16 and self.isa.has_bf16_dot

    @property
    def tile_rows(self) -> int:
        """Two rows fewer than plain weights: the words stay in registers beside their parts."""
        return max(2, self.isa.tile_rows - 2)

    def load_x(self, pointer: Pointer, part: int) -> Value:
        if self.activation is DType.F32:
            return pointer.of(F32)[part].splat(LANES)
        if self.takes_pairs:
            return pointer.of(I32)[part].splat(LANES)
        bits = pointer.of(I16)[part].to(I32, signed=False) << 16
        return bits.bits_as(F32).splat(LANES)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.isa.dot_pair(total, w, x) if self.takes_pairs else w.fma(x, total)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        """Sums are of value / scale."""
        return total * panel.vec(j * LANES, LANES)
