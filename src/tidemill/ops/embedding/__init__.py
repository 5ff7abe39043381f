"""embedding: each token's row of the table.

    out[t, :] = table[tokens[t], :]

Legend: T tokens, V vocabulary, H hidden. Supported: tables of every type that a linear layer takes,
as a tied head is one; the result is f32, exact. Deterministic, and no row depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    MATRIX_DTYPES,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype,
)
from tidemill.ops.row import Cost, OpRow, StepSizes


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (i32[T], weight[V, H]) -> f32[T, H]."""
    expect_count(types, 2)
    tokens, table = types
    expect_dtype("tokens", tokens, DType.I32)
    expect_dtype("table", table, *MATRIX_DTYPES)
    (rows,) = expect_dims("tokens", tokens, 1)
    _, hidden = expect_dims("table", table, 2)
    return (TensorType(DType.F32, (rows, hidden)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Look the rows up."""
    tokens_T, table_VH = inputs
    return (table_VH[tokens_T],)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count one table row read and one row written for each token."""
    tokens, table = (value.type for value in op.inputs)
    written = op.outputs[0].type
    read = TensorType(table.dtype, written.shape)
    return Cost(0, sum(map(sizes.bytes, (tokens, read, written))))


ROW = OpRow("embedding", rule, reference, cost)
