"""Copies the rows whose logits are wanted; exact."""

from __future__ import annotations

from tidemill.codegen.isa import LANES
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64
from tidemill.ops.layout import wide_row

FIELDS = ("rows", "x", "indices", "y")


def emit(module: Module, symbol: str, columns: int) -> Kernel:
    """Emit the copy for rows of `columns` f32 elements."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f, row = frame.f, wide_row(columns)
    first, last = frame.share(frame.count("rows"))
    with f.loop(first, last) as i:
        source = frame.pointer("x", F32).at(frame.pointer("indices", I32)[i].to(I64) * row)
        y = frame.pointer("y", F32).at(i * row)
        with f.loop(0, row, LANES) as c:
            y.put(c, source.vec(c, LANES))
    return kernel
