"""4-bit weights by group of inputs: how their words multiply, and what a group adds to an output.

    value = scale * nibble - offset, both f16, for each group and output; or
    value = scale * (nibble - 8)

Sums over a group are exact integers (x of q8) or f32 (x widened); then, once a group and in order,
out += scale * sum(nibble * x) - offset * sum(x), or out += scale * sum((nibble - 8) * x), each
product added without rounding it first. A word is 8 inputs (ops/layout.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.types import F16, F32, I16, I32
from tidemill.ops.layout import PANEL, sums_at
from tidemill.ops.linear.format_contract import GroupedFormat
from tidemill.ops.linear.widened import WidenedFormat, pair_of

_SUMS = I32.x(LANES)
_NIBBLES = 0x0F0F0F0F
_BF16_ONES = 0x3F803F80


def load_header(weight: DType, header: Pointer, j: int) -> list[Value]:
    """A group's scales for vector j, and its offsets where the type has them."""
    places = (0, PANEL) if weight.has_offsets else (0,)
    return [header.of(F16).vec(at + j * LANES, LANES).to(F32) for at in places]


@dataclass(frozen=True)
class Q4Format(GroupedFormat):
    """4-bit weights with q8 activations, whose stored bytes are level + 128.

    The panel's starts make up for the 128; the quantiser left the sums of x's bytes in its row.
    """

    @property
    def num_parts(self) -> int:
        return 2

    @property
    def tile_rows(self) -> int:
        """Two rows fewer than plain weights: a word stays in registers beside its halves."""
        return max(2, self.isa.tile_rows - 2)

    def start(self, panel: Pointer, j: int) -> Value:
        return panel.vec(j * LANES, LANES)

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return (words[0] >> (4 * part)) & _NIBBLES

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.isa.dot_quad(total, w, x)

    def sum_of_x(self, summed: Value | None, x_row: Pointer, k: int, group: Value) -> Value:
        """The sum of the group's bytes: whole numbers, exact in any order."""
        num = self.weight.group_size // 32
        sums = x_row.bytes(sums_at(k)).at(group * num)
        total = sums[0]
        for i in range(1, num):
            total = total + sums[i]
        return total

    def add_group(
        self, out: Value, total: Value, header: list[Value], x_sum: Value | None
    ) -> Value:
        assert x_sum is not None
        scales, *offsets = header
        if offsets:
            return _add_with_offset(out, total.to(F32), scales, offsets[0], x_sum)
        return scales.fma(total.to(F32) - x_sum * 8.0, out)  # the factor is whole, and exact

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        assert x_scale is not None
        return total * x_scale[0]


@dataclass(frozen=True)
class Q4WidenedFormat(WidenedFormat, GroupedFormat):
    """4-bit weights, widened in registers, with f32 or bf16 activations; sums in f32.

    Nibbles are exact in bf16: two make the index of a table of bf16 numbers for a dot product.
    Where groups have offsets, the sum of x comes from a product with ones.
    """

    @property
    def sums_x(self) -> bool:
        return self.weight.has_offsets

    @property
    def zero(self) -> int:
        """The nibble that stands for 0."""
        return 0 if self.weight.has_offsets else 8

    @property
    def num_parts(self) -> int:
        return 4 if self.takes_pairs else 8

    @property
    def tile_rows(self) -> int:
        """Three sums a row, two of outputs and one of x; or two, beside words and their parts."""
        rows = self.isa.tile_rows
        return max(2, rows * 4 // 7 if self.sums_x else rows - 2)

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        (word,) = words
        if not self.takes_pairs:
            return self._nibble(word, part)
        if self.isa.target.arch != "x86_64":
            return pair_of(*(self._nibble(word, 2 * part + i) for i in range(2)))
        low, high = _bit(2 * part), _bit(2 * part + 1)
        upper = word >> (high - 16) if high >= 16 else word << (16 - high)
        pair = ((word >> low) & 15) | (upper & (15 << 16))
        table = word.f.table([_bf16_bits(i % 16 - self.zero) for i in range(2 * LANES)], I16)
        name = "llvm.x86.avx512.permvar.hi.512"
        found = word.f.intrinsic(name, table.type, table, pair.bits_as(table.type))
        return found.bits_as(_SUMS)

    def _nibble(self, word: Value, index: int) -> Value:
        """What input `index` of each word stands for, before scale and offset, as f32."""
        return (((word >> _bit(index)) & 15) - self.zero).to(F32)

    def ones(self, f: Function) -> Value | None:
        if not self.sums_x:
            return None
        return f.constant(_BF16_ONES, _SUMS) if self.takes_pairs else f.constant(1.0, V)

    def add_group(
        self, out: Value, total: Value, header: list[Value], x_sum: Value | None
    ) -> Value:
        scales, *offsets = header
        if offsets:
            assert x_sum is not None
            return _add_with_offset(out, total, scales, offsets[0], x_sum)
        return scales.fma(total, out)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        return total


def _add_with_offset(
    out: Value, total: Value, scales: Value, offsets: Value, x_sum: Value
) -> Value:
    return offsets.fma(x_sum * -1.0, scales.fma(total, out))


def _bit(k: int) -> int:
    """The lowest bit of input k's nibble in its word."""
    return 4 * (2 * (k % 4) + k // 4)


def _bf16_bits(number: int) -> int:
    """The bits of a small whole number as bf16."""
    return int.from_bytes(struct.pack(">f", number)[:2], "big")
