"""How the words of a pair of weight and activation types multiply, as linear layers ask for it.

A word is what a packed row holds for one output: `k_step` inputs. A `Format` loads 16 words of w,
in one vector or several, and the matching inputs of x, multiplies them in one or more parts (in
order of k), and turns raw sums into f32. Each output has one chain of sums, whatever the tile
around it. What is said here goes for most formats: one part, words of 32 bits, no scales. Knows
nothing of tiles, panels' order or epilogues.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.types import I32, Type
from tidemill.ops.layout import k_step


@dataclass(frozen=True)
class Format(ABC):
    """One weight type against one activation type."""

    isa: Isa
    weight: DType
    activation: DType

    @property
    def name(self) -> str:
        return f"{self.weight.value}_{self.activation.value}"

    @property
    def sum_type(self) -> Type:
        """Sixteen sums: whole numbers, exact, where activations are levels."""
        return I32.x(LANES) if self.activation is DType.Q8 else V

    @property
    def num_parts(self) -> int:
        """Multiplications that take one word."""
        return 1

    @property
    def tile_rows(self) -> int:
        """The most rows of a register tile."""
        return self.isa.tile_rows

    @property
    def vector_bytes(self) -> int:
        """Bytes of 16 words of w."""
        return 4 * LANES

    @property
    def steps_a_word(self) -> int:
        """Steps in which a word's inputs are taken: more than one if it was taken apart before."""
        return 1

    @property
    def x_step_bytes(self) -> int:
        """Bytes of the inputs of x that a step takes."""
        return k_step(self.weight) * self.activation.itemsize_bytes // self.steps_a_word

    def start(self, panel: Pointer, j: int) -> Value:
        """What the sums of a panel's vector j begin with."""
        return panel.f.zero(self.sum_type)

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return (pointer.of(I32).vec(0, LANES),)

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return words[0]

    def load_x(self, pointer: Pointer, part: int) -> Value:
        """Broadcast the inputs of x that meet one part of a word."""
        return pointer.of(I32)[part].splat(LANES)

    @abstractmethod
    def dot(self, total: Value, w: Value, x: Value) -> Value: ...

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        """Turn the raw sums of vector j into f32; `x_scale` is that of a row of levels."""
        return total


@dataclass(frozen=True)
class GroupedFormat(Format):
    """A format whose weights have a scale, and maybe an offset, for each group of inputs."""

    def ones(self, f: Function) -> Value | None:
        """What x is multiplied with to sum it; None where nothing asks, or x's row holds sums."""
        return None

    def sum_of_x(self, summed: Value | None, x_row: Pointer, k: int, group: Value) -> Value | None:
        """The sum of a group's inputs; `summed` is what `ones` made of them."""
        return summed

    @abstractmethod
    def add_group(
        self, out: Value, total: Value, header: list[Value], x_sum: Value | None
    ) -> Value:
        """An output and a group's sums, scaled."""
