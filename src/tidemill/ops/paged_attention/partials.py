"""What is known of a tile's rows after a part of their positions: maximum, sum and output so far.

In: partial results of consecutive partitions. Out: their union, and the rows' final values. A row
is H + 32 floats: its unscaled output, the exponent that its shares are relative to, and 16 sums of
shares, each lane its own. Exponents are whole, so that joining scales by powers of two, exactly. An
empty row is (0, EMPTY, 0), and joining it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I64, PTR
from tidemill.codegen.vector_math import power_of_two
from tidemill.ops.cpu_elements import store_f32

MASKED = -3e38  # the score of what is not seen
EMPTY = -1e30  # the exponent of a row that sees nothing: what it does not see lies below, too


def partial_row_bytes(width: int) -> int:
    """Bytes of one row's partial result."""
    return 4 * (width + 2 * LANES)


@dataclass(frozen=True)
class Partials:
    """Rows of one head width; `group` consecutive rows are the query heads of one token."""

    isa: Isa
    width: int
    group: int
    activation: DType
    y_row_bytes: int

    @property
    def row_floats(self) -> int:
        return partial_row_bytes(self.width) // 4

    @property
    def top_at(self) -> int:
        return self.width

    @property
    def total_at(self) -> int:
        return self.width + LANES

    def clear_output(self, row: Pointer) -> None:
        for i in range(0, self.width, LANES):
            row.put(i, row.f.zero(V))

    def emit_join(self, module: Module, symbol: str) -> Function:
        """into = into and then more, for `rows` rows."""
        f = module.function(symbol, into=PTR, more=PTR, rows=I64)
        into_rows, more_rows = (arg.as_pointer(F32) for arg in f.args[:2])
        with f.loop(0, f.args[2]) as r:
            into, more = (rows.at(r * self.row_floats) for rows in (into_rows, more_rows))
            tops = into.vec(self.top_at, LANES), more.vec(self.top_at, LANES)
            top = tops[0].max(tops[1])
            fades = [power_of_two(each - top) for each in tops]
            into.put(self.top_at, top)
            for i in [*range(0, self.width, LANES), self.total_at]:
                kept = into.vec(i, LANES) * fades[0]
                into.put(i, more.vec(i, LANES).fma(fades[1], kept))
        return f

    def emit_finish(self, module: Module, symbol: str) -> Function:
        """y = output / sum, for the rows of `count` tokens."""
        f = module.function(symbol, rows=PTR, y=PTR, count=I64)
        rows, y = (arg.as_pointer(F32) for arg in f.args[:2])
        size = self.activation.itemsize_bytes
        with f.loop(0, f.args[2]) as t, f.loop(0, self.group) as g:
            row = rows.at((t * self.group + g) * self.row_floats)
            to = y.bytes(t * self.y_row_bytes + g * (self.width * size))
            inverse = f.constant(1.0, V) / row.vec(self.total_at, LANES).lanes_sum()
            for i in range(0, self.width, LANES):
                # Adding zero makes -0 into 0, as joining with an empty row does.
                value = row.vec(i, LANES) * inverse + 0.0
                store_f32(self.isa, to.bytes(i * size), 0, value, self.activation)
        return f
