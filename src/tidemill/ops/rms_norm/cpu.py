"""RMS norm on the CPU: y = x / sqrt(mean(x^2) + epsilon) * weight, as activations.

Legend: rows over threads, H columns. The sum of squares runs over two accumulators in a fixed
order; f32 throughout, rounded (or quantised) once at the end. Padding columns are zero and come
out zero.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import PANEL, activation_row, wide_row
from tidemill.ops.quantize.cpu import quantize_row

FIELDS = ("rows", "x", "weight", "y")


def emit(
    module: Module, symbol: str, isa: Isa, activation: DType, columns: int, epsilon: float
) -> Kernel:
    """Emit the norm for rows of `columns`; the weight vector is padded with zeros."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f, row = frame.f, wide_row(columns)
    y_row = activation_row(columns, activation)
    weight, squares = frame.pointer("weight", F32), f.registers(V)
    first, last = frame.share(frame.count("rows"))
    with f.loop(first, last) as r:
        x = frame.pointer("x", F32).at(r * row)
        y = frame.pointer("y", F32).bytes(r * (y_row * activation.itemsize_bytes))
        for u in range(2):
            squares[u] = f.zero(V)
        with f.loop(0, row, PANEL) as c:
            for u in range(2):
                value = x.vec(c + u * LANES, LANES)
                squares[u] = value.fma(value, squares[u])
        mean = (squares[0] + squares[1]).lanes_sum() * (1.0 / columns)
        scale = f.constant(1.0, V) / (mean + epsilon).call("sqrt")

        def normed(c: Value, x: Pointer = x, scale: Value = scale) -> Value:
            return x.vec(c, LANES) * scale * weight.vec(c, LANES)

        if activation is DType.Q8:
            quantize_row(f, normed, columns, y)
        else:
            with f.loop(0, row, LANES) as c:
                store_f32(isa, y.bytes(c * activation.itemsize_bytes), 0, normed(c), activation)
    return kernel
