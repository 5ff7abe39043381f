"""Epilogues of linear layers: what becomes of the products of one row with one panel.

In: two vectors of 16 f32, still in registers, and where the row's part of y begins. Knows nothing
of formats, tiles or rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import F32
from tidemill.codegen.vector_math import silu
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import PANEL


@dataclass(frozen=True)
class Epilogue:
    """`write` leaves a row's vectors in y, of which a panel takes `panel_bytes`."""

    panel_bytes: int
    write: Callable[[Isa, Pointer, list[Value]], None]
    has_bias: bool = False


def store(has_bias: bool = False) -> Epilogue:
    """y = the products, in f32."""

    def write(isa: Isa, y: Pointer, vectors: list[Value]) -> None:
        for j, value in enumerate(vectors):
            y.put(j * LANES, value)

    return Epilogue(PANEL * F32.size_bytes, write, has_bias)


def add_residual(has_bias: bool = False) -> Epilogue:
    """y += the products: the residual stream is updated in place."""

    def write(isa: Isa, y: Pointer, vectors: list[Value]) -> None:
        for j, value in enumerate(vectors):
            y.put(j * LANES, y.vec(j * LANES, LANES) + value)

    return Epilogue(PANEL * F32.size_bytes, write, has_bias)


def gate_silu(dtype: DType, has_bias: bool = False) -> Epilogue:
    """y = silu(first vector) * second: a panel holds 16 outputs of each branch."""

    def write(isa: Isa, y: Pointer, vectors: list[Value]) -> None:
        gate = silu(isa, vectors[0], is_rough=dtype is DType.BF16)
        store_f32(isa, y, 0, gate * vectors[1], dtype)

    return Epilogue(LANES * dtype.itemsize_bytes, write, has_bias)
