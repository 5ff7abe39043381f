"""Quantising rows on the CPU: int8 levels (stored plus 128) and one f32 scale behind them.

Legend: rows over threads, K columns. Two passes over a row: the largest magnitude, then the
levels. f32 throughout, in the reference's order of operations, so that levels agree bit for bit.
Only whole vectors of columns are touched: what pads the last one must be zero, what lies behind it
may be anything. With `has_sums` whole blocks of 32 columns also get the sum of their bytes, which
weights by group want. `quantize_row` also serves RMS norm.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I8, I32, I64
from tidemill.ops.cpu_elements import load_f32
from tidemill.ops.layout import PANEL, activation_row, round_up, scale_at, sums_at

FIELDS = ("rows", "x", "y")
_OFFSET = 128


def quantize_row(
    f: Function, load: Callable[[Value], Value], columns: int, y: Pointer, has_sums: bool
) -> None:
    """Quantise one row: `load(c)` gives the f32 lanes from column c on, and is called twice."""
    row, largest = round_up(columns, LANES), f.registers(V)
    largest[0] = f.zero(V)
    with f.loop(0, row, LANES) as c:
        largest[0] = largest[0].max(load(c).call("fabs"))
    most = largest[0].lanes_max()
    inverse = f.select(most.eq(0.0), f.zero(V), f.constant(127.0, V) / most)

    def level(c: Value) -> Value:
        levels = (load(c) * inverse).call("rint").to(I32) + _OFFSET
        y.of(I8).put(c, levels.to(I8))
        return levels

    sums = y.bytes(sums_at(columns)).of(F32)
    with f.loop(0, columns // PANEL * PANEL, PANEL) as c:
        total = level(c) + level(c + LANES)
        if has_sums:
            sums[c // PANEL] = total.lanes_sum().to(F32).lane(0)
    for at in range(columns // PANEL * PANEL, row, LANES):
        level(f.constant(at, I64))
    y.bytes(scale_at(columns)).of(F32)[0] = most.lane(0) * (1 / 127)


def emit(module: Module, symbol: str, activation: DType, columns: int, has_sums: bool) -> Kernel:
    """Emit the kernel for rows of `columns` activations."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f = frame.f
    x_row_bytes = activation_row(columns, activation) * activation.itemsize_bytes
    first, last, further = frame.made_rows()
    with f.loop(first, last) as r:
        x = frame.pointer("x", F32).bytes(r * x_row_bytes)
        y = frame.pointer("y", F32).bytes((r + further) * activation_row(columns, DType.Q8))

        def load(c: Value, x: Pointer = x) -> Value:
            return load_f32(x.bytes(c * activation.itemsize_bytes), 0, LANES, activation)

        quantize_row(f, load, columns, y, has_sums)
    return kernel
