"""How the words of each pair of weight and activation types multiply, for linear layers.

A word is what a packed row holds for one output: `k_step` inputs. A `Format` loads 16 words of w,
in one vector or several, and the matching inputs of x, multiplies them in one or more parts (in
order of k), and turns raw sums into f32. Each output has one chain of sums, whatever the tile
around it. Knows nothing of tiles, panels' order or epilogues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.types import F32, I32, Type
from tidemill.ops.cpu_elements import PairMath, widen_e4m3
from tidemill.ops.layout import PANEL, k_step
from tidemill.ops.linear.formats_bf12 import Bf12Format
from tidemill.ops.linear.formats_q4 import Q4Format, Q4WidenedFormat
from tidemill.ops.linear.widened import WidenedFormat, pair_of

_SUMS = I32.x(LANES)


class Format(Protocol):
    """One weight type against one activation type.

    `num_parts` multiplications take one word; `tile_rows` is the most rows of a register tile.
    """

    @property
    def isa(self) -> Isa: ...

    @property
    def weight(self) -> DType: ...

    @property
    def activation(self) -> DType: ...

    @property
    def name(self) -> str: ...

    @property
    def sum_type(self) -> Type: ...

    @property
    def num_parts(self) -> int: ...

    @property
    def tile_rows(self) -> int: ...

    @property
    def vector_bytes(self) -> int: ...

    @property
    def x_step_bytes(self) -> int: ...

    def start(self, panel: Pointer, j: int) -> Value: ...

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]: ...

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value: ...

    def load_x(self, pointer: Pointer, part: int) -> Value: ...

    def dot(self, total: Value, w: Value, x: Value) -> Value: ...

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value: ...


@runtime_checkable
class GroupedFormat(Format, Protocol):
    """A format whose weights have a scale, and maybe an offset, for each group of inputs.

    `ones` is what x is multiplied with to sum it; None where nothing asks for that sum, or x's row
    holds it.
    """

    def ones(self, f: Function) -> Value | None: ...

    def sum_of_x(
        self, summed: Value | None, x_row: Pointer, k: int, group: Value
    ) -> Value | None: ...

    def add_group(
        self, out: Value, total: Value, header: list[Value], x_sum: Value | None
    ) -> Value: ...


@dataclass(frozen=True)
class PlainFormat:
    """bf16, f16 and f32 weights with the activations that belong to them."""

    isa: Isa
    weight: DType
    num_parts: int = 1
    sum_type: Type = V
    x_step_bytes: int = 4

    @property
    def math(self) -> PairMath:
        return PairMath(self.isa, self.weight)

    @property
    def activation(self) -> DType:
        return self.math.activation

    @property
    def name(self) -> str:
        return self.weight.value

    @property
    def tile_rows(self) -> int:
        return self.isa.tile_rows

    @property
    def vector_bytes(self) -> int:
        return self.math.vector_bytes

    def start(self, panel: Pointer, j: int) -> Value:
        return panel.f.zero(V)

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return (self.math.load_w(pointer),)

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return words[0]

    def load_x(self, pointer: Pointer, part: int) -> Value:
        return self.math.load_x(pointer)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.math.dot(total, w, x)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        return total


@dataclass(frozen=True)
class Q8Format:
    """q8 weights with q8 activations: exact sums of integers, then both scales."""

    isa: Isa
    weight: DType = DType.Q8
    activation: DType = DType.Q8
    name: str = "q8_q8"
    num_parts: int = 1
    sum_type: Type = _SUMS
    vector_bytes: int = 4 * LANES
    x_step_bytes: int = 4

    @property
    def tile_rows(self) -> int:
        return self.isa.tile_rows

    def start(self, panel: Pointer, j: int) -> Value:
        return panel.of(I32).vec(PANEL + j * LANES, LANES)

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return (pointer.of(I32).vec(0, LANES),)

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return words[0]

    def load_x(self, pointer: Pointer, part: int) -> Value:
        return pointer.of(I32)[0].splat(LANES)

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
    def name(self) -> str:
        return f"{self.weight.value}_{self.activation.value}"

    @property
    def num_parts(self) -> int:
        return 2 if self.takes_pairs else 4

    @property
    def x_step_bytes(self) -> int:
        return k_step(self.weight) * self.activation.itemsize_bytes

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
    if weight.group_size:
        is_leveled = activation is DType.Q8
        return Q4Format(isa, weight) if is_leveled else Q4WidenedFormat(isa, weight, activation)
    if weight is DType.Q8 and activation is DType.Q8:
        return Q8Format(isa)
    if weight is DType.BF12:
        return Bf12Format(isa)
    if weight.is_quantized:
        return ByteFormat(isa, weight, activation)
    plain = PlainFormat(isa, weight)
    assert activation is plain.activation, (weight, activation)
    return plain
