"""Copies the rows whose logits are wanted, padding included, whatever they hold."""

from __future__ import annotations

from tidemill.codegen.isa import LANES
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64

FIELDS = ("rows", "x", "indices", "y", "row_bytes")


def emit(module: Module, symbol: str) -> Kernel:
    """Emit the copy, for rows of whole cache lines."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f, row_bytes = frame.f, frame.integer("row_bytes")
    first, last = frame.share(frame.count("rows"))
    with f.loop(first, last) as i:
        index = frame.pointer("indices", I32)[i].to(I64)
        source = frame.pointer("x", F32).bytes(index * row_bytes)
        y = frame.pointer("y", F32).bytes(i * row_bytes)
        with f.loop(0, row_bytes // F32.size_bytes, LANES) as c:
            y.put(c, source.vec(c, LANES))
    return kernel
