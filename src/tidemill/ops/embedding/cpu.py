"""Embedding rows on the CPU, gathered from the packed panels that a tied head also reads.

One packed copy serves both, so tied weights are stored and mapped once. A row's words lie one
panel row apart; the gather costs about as many cache lines as the row has words, for the step's
tokens only. Exact: elements are widened to f32, those of q8 and f8 times their scale.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.isa import LANES
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I8, I32, I64
from tidemill.ops.cpu_elements import load_f32, widen_e4m3
from tidemill.ops.layout import PANEL, k_step, padded_k, panel_bytes, panel_header_bytes, wide_row

FIELDS = ("rows", "tokens", "table", "y")


def emit(module: Module, symbol: str, weight: DType, columns: int) -> Kernel:
    """Emit the gather for tables of `columns` inputs."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f, step, row = frame.f, k_step(weight), wide_row(columns)
    steps = padded_k(columns, weight) // step
    first, last = frame.share(frame.count("rows"))
    with f.loop(first, last) as t:
        token = frame.pointer("tokens", I32)[t].to(I64)
        y = frame.pointer("y", F32).at(t * row)
        with f.loop(0, row, LANES) as c:
            y.put(c, f.zero(F32.x(LANES)))
        panel = frame.pointer("table", F32).bytes((token // PANEL) * panel_bytes(columns, weight))
        in_panel = token % PANEL
        table = panel.bytes(panel_header_bytes(weight)).bytes(
            in_panel * step * weight.itemsize_bytes
        )
        with f.loop(0, steps) as s:
            at = table.bytes(s * (PANEL * step * weight.itemsize_bytes))
            if weight is DType.Q8:
                words = at.of(I8).vec(0, step).to(F32) * panel[in_panel]
            elif weight is DType.F8:
                words = widen_e4m3(at.of(I8).vec(0, step).to(I32) << 24) * panel[in_panel]
            else:
                words = load_f32(at, 0, step, weight)
            y.put(s * step, words)
    return kernel
