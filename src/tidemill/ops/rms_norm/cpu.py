"""RMS norm on the CPU: y = x / sqrt(mean(x^2) + epsilon) * weight, as activations.

Legend: rows over threads, H columns. The sum of squares runs over two accumulators in a fixed
order; f32 throughout, rounded (or quantised) once at the end. Padding columns are zero and come
out zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import PANEL, activation_row, wide_row
from tidemill.ops.quantize.cpu import quantize_row

FIELDS = ("rows", "x", "weight", "y")


@dataclass(frozen=True)
class RmsNormKernel:
    """The norm of rows of `columns`; a quantised row has sums where something reads them."""

    isa: Isa
    activation: DType
    columns: int
    epsilon: float
    has_sums: bool

    def emit(self, module: Module, symbol: str) -> Kernel:
        """Emit the kernel; the weight vector is padded with zeros."""
        kernel, frame = open_kernel(module, symbol, FIELDS)
        f, row = frame.f, wide_row(self.columns)
        y_row = activation_row(self.columns, self.activation)
        weight, squares = frame.pointer("weight", F32), f.registers(V)
        first, last, further = frame.made_rows()
        with f.loop(first, last) as r:
            x = frame.pointer("x", F32).at(r * row)
            y = frame.pointer("y", F32).bytes(
                (r + further) * (y_row * self.activation.itemsize_bytes)
            )
            for u in range(2):
                squares[u] = f.zero(V)
            with f.loop(0, row, PANEL) as c:
                for u in range(2):
                    value = x.vec(c + u * LANES, LANES)
                    squares[u] = value.fma(value, squares[u])
            mean = (squares[0] + squares[1]).lanes_sum() * (1.0 / self.columns)
            scale = f.constant(1.0, V) / (mean + self.epsilon).call("sqrt")

            def normed(c: Value, x: Pointer = x, scale: Value = scale) -> Value:
                return x.vec(c, LANES) * scale * weight.vec(c, LANES)

            self._store(f, normed, y)
        return kernel

    def _store(self, f: Function, normed: Callable[[Value], Value], y: Pointer) -> None:
        if self.activation is DType.Q8:
            quantize_row(f, normed, self.columns, y, self.has_sums)
            return
        with f.loop(0, wide_row(self.columns), LANES) as c:
            to = y.bytes(c * self.activation.itemsize_bytes)
            store_f32(self.isa, to, 0, normed(c), self.activation)
